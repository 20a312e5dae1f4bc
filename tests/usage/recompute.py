"""Computes a bill from the ledger alone, and holds an export against it.

    recompute.py USAGE_DIR RATE_CARD EXPORT.csv PERIOD [PROVIDER]

Written from the description of the ledger, not from the program: BLAKE3, the chain,
cumulative counters, tiers, guarantees, corrections, time zones, exact fractions, half to
even. Fails with the first difference.
"""

import csv
import json
import subprocess
import sys
import tomllib
from datetime import datetime, timezone
from fractions import Fraction
from pathlib import Path
from zoneinfo import ZoneInfo

# BLAKE3, after its specification: hash only, no key.
IV = [0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19]
ORDER = [2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8]
START, END, PARENT, ROOT = 1, 2, 4, 8
MASK = 0xFFFFFFFF


def compress(chaining, block, counter, length, flags):
    v = chaining + IV[:4] + [counter & MASK, counter >> 32, length, flags]
    m = list(block)

    def rotate(x, n):
        return (x >> n | x << 32 - n) & MASK

    def g(a, b, c, d, x, y):
        v[a] = (v[a] + v[b] + x) & MASK
        v[d] = rotate(v[d] ^ v[a], 16)
        v[c] = (v[c] + v[d]) & MASK
        v[b] = rotate(v[b] ^ v[c], 12)
        v[a] = (v[a] + v[b] + y) & MASK
        v[d] = rotate(v[d] ^ v[a], 8)
        v[c] = (v[c] + v[d]) & MASK
        v[b] = rotate(v[b] ^ v[c], 7)

    for turn in range(7):
        for i in range(4):
            g(i, 4 + i, 8 + i, 12 + i, m[2 * i], m[2 * i + 1])
        for i in range(4):
            g(i, 4 + (i + 1) % 4, 8 + (i + 2) % 4, 12 + (i + 3) % 4, m[8 + 2 * i], m[9 + 2 * i])
        m = [m[i] for i in ORDER]
    return [v[i] ^ v[i + 8] for i in range(8)]


def words(data):
    data = data.ljust(64, b"\0")
    return [int.from_bytes(data[i : i + 4], "little") for i in range(0, 64, 4)]


def blake3(data):
    def chunk(data, number, root):
        chaining = IV
        blocks = [data[i : i + 64] for i in range(0, len(data), 64)] or [b""]
        for i, block in enumerate(blocks):
            last = i + 1 == len(blocks)
            flags = (START if i == 0 else 0) | (END if last else 0) | (ROOT if last and root else 0)
            chaining = compress(chaining, words(block), number, len(block), flags)
        return chaining

    def tree(data, number, root):
        if len(data) <= 1024:
            return chunk(data, number, root)
        left = 1024
        while left * 2 < len(data):
            left *= 2
        halves = tree(data[:left], number, False) + tree(data[left:], number + left // 1024, False)
        return compress(IV, halves, 0, 64, PARENT | (ROOT if root else 0))

    return b"".join(word.to_bytes(4, "little") for word in tree(data, 0, True))


assert blake3(b"").hex() == "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"

HOUR = 3_600_000
GIB_SECOND = (1 << 30) * 10**9
# As cards call it, the counter, how many are a unit.
METERS = [
    ("core_second", "cpu_ns", 10**9),
    ("memory_gib_second", "memory_byte_ns", GIB_SECOND),
    ("storage_gib_second", "stored_byte_ns", GIB_SECOND),
    ("restore", "restores", 1),
    ("request", "requests", 1),
    ("sent_gib", "sent_bytes", 1 << 30),
]


def ledger(usage):
    """All records, their chain verified."""
    prev, seq, sealed, loose = bytes(32), 0, None, False
    for path in sorted((usage / "ledger").glob("0*.ledger*")):
        if path.suffix == ".zst":
            text = subprocess.run(["zstd", "-dc", path], capture_output=True, check=True).stdout
        else:
            text = path.read_bytes()
        for number, line in enumerate(text.splitlines(keepends=True), 1):
            if not line.endswith(b"\n"):
                return
            covered, _, digits = line.rstrip(b"\n").rpartition(b',"hash":"')
            record = json.loads(line)
            if "head" in record["body"]:
                if sealed:
                    # That segment was compacted: what follows it follows what it was.
                    prev, seq = bytes.fromhex(sealed["hash"]), sealed["next_seq"]
                sealed, loose = None, "kept" in record["body"]["head"]
                assert record["body"]["head"]["prev"] == prev.hex(), f"{path.name}:{number}: other segment"
            digest = blake3(prev + covered)
            assert digits == digest.hex().encode() + b'"}', f"{path.name}:{number}: wrong hash"
            assert record["seq"] == seq or loose, f"{path.name}:{number}: wrong number"
            prev, seq = digest, record["seq"] + 1
            sealed = record["body"].get("sealed", sealed)
            yield record


def half_even(value, decimals):
    scaled = value * 10**decimals
    return Fraction(round(scaled), 10**decimals)


def cost_of(card, name, per, before, count):
    """By tiers, where `before` were billed in the month."""
    tiers = card.get("tiers", {}).get(name) or [{"price": card["prices"][name]}]
    cost, start, end = Fraction(0), before, before + count
    for tier in tiers:
        until = int(Fraction(tier["up_to"]) * per) if "up_to" in tier else end
        part = max(0, min(end, until) - start)
        cost += Fraction(part, per) * Fraction(tier["price"])
        start += part
    return cost


def bill(usage, card, period, provider):
    """{(hour, account, meter, kind): (count, cost)}, the gaps, and the corrections in it."""
    accounts, highest, gaps, corrections, newest = {}, {}, set(), {}, 0
    zone = ZoneInfo(card.get("time_zone", "UTC"))

    def in_period(hour):
        return datetime.fromtimestamp(hour * 3600, zone).strftime("%Y-%m") == period

    for record in ledger(usage):
        hour = record["unix_ms"] // HOUR
        newest = max(newest, hour)
        for kind in ("account", "use", "end"):
            body = record["body"].get(kind)
            if body is None:
                continue
            if kind == "account":
                accounts.setdefault(body["id"], body)
            counters = highest.setdefault(body["id"], {}).setdefault(hour, {})
            for name, count in body["counters"].items():
                counters[name] = max(counters.get(name, 0), count)
        gap = record["body"].get("gap")
        if gap and gap.get("id"):
            gaps.add((hour, gap["id"]))
        correction = record["body"].get("correction")
        if correction and in_period(hour) and provider in (None, correction["of"]["provider"]):
            key = (correction["event"], correction["count"], Fraction(correction["cost"]))
            corrections[key] = corrections.get(key, 0) + 1

    meters = METERS + [("waited", "waited_ns", 1)]
    uses = []
    for account, hours in highest.items():
        before = {}
        for hour in sorted(hours):
            for name, counter, _ in meters:
                now = max(before.get(name, 0), hours[hour].get(counter, 0))
                if now > before.get(name, 0):
                    uses.append((hour, accounts[account]["app"], account, name, now - before.get(name, 0)))
                before[name] = now
    order = {name: i for i, (name, _, _) in enumerate(meters)}
    uses.sort(key=lambda use: (use[0], use[1], use[2], order[use[3]]))

    rows, left, billed_before, kept = {}, {}, {}, {}
    units = {name: per for name, _, per in meters}
    begins = datetime.fromisoformat(card["valid_from"]).timestamp() // 3600
    decimals = card.get("decimals", 6)
    guarantees = {(of["provider"], of["app"]): of for of in card.get("guarantee", [])}
    seconds = 3600 * 10**9

    def reserved(of, ns):
        count = int(Fraction(of["cores"]) * ns)
        return count, half_even(Fraction(count, 10**9) * Fraction(of["price"]), decimals)

    first = min((hour for hour in range(newest - 800, newest + 1) if in_period(hour)), default=newest + 1)
    for hour in range(max(first, int(begins)), newest + 1):
        for (of, app), guarantee in guarantees.items():
            if in_period(hour) and provider in (None, of):
                rows[hour, f"guarantee:{of}:{app}", "reserved_core_second", "reserved"] = reserved(guarantee, seconds)
    for hour, app, account, name, count in uses:
        of = accounts[account]["provider"]
        if not in_period(hour) or provider not in (None, of):
            continue
        guarantee = guarantees.get((of, app)) if hour >= begins else None
        if name == "waited":
            if guarantee:
                credit, cost = reserved(guarantee, min(count, seconds))
                rows[hour, account, "reserved_core_second", "credit"] = (-credit, -cost)
            continue
        cost, per = Fraction(0), units[name]
        cause = accounts[account].get("cause")
        if hour >= begins and not (name == "restore" and cause in ("recovery", "prefetch")):
            billed = count
            if guarantee and name == "core_second":
                room = kept.setdefault((hour, of, app), reserved(guarantee, seconds)[0])
                kept[hour, of, app] = max(0, room - billed)
                billed -= min(room, billed)
            free = left.setdefault((of, name), int(Fraction(card.get("free", {}).get(name, "0")) * per))
            given = min(free, billed)
            left[of, name] -= given
            billed -= given
            before = billed_before.get((of, name), 0)
            billed_before[of, name] = before + billed
            least = int(Fraction(card.get("minimum", {}).get(name, "0")) * per)
            if 0 < billed < least:
                billed = least
            cost = half_even(cost_of(card, name, per, before, billed), decimals)
        rows[hour, account, name, "measured"] = (count, cost)
    wanted = {gap for gap in gaps if in_period(gap[0]) and provider in (None, accounts[gap[1]]["provider"])}
    return rows, wanted, corrections


def main():
    usage, card, export, period, *provider = sys.argv[1:]
    rows, gaps, corrections = bill(Path(usage), tomllib.loads(Path(card).read_text()), period, (provider or [None])[0])
    total, ids, prev = Fraction(0), set(), "0" * 64
    with open(export, newline="") as file:
        for row in csv.DictReader(file):
            assert row["x_EventId"] not in ids, f"twice: {row}"
            ids.add(row["x_EventId"])
            fields = list(row.values())
            covered = "".join(field + "\n" for field in [prev] + fields[:44])
            assert row["x_PrevHash"] == prev, f"a row is missing before {row}"
            assert row["x_RowHash"] == blake3(covered.encode()).hex(), f"changed: {row}"
            prev = row["x_RowHash"]
            hour = int(datetime.fromisoformat(row["ChargePeriodStart"]).timestamp()) // 3600
            if row["x_Quality"] == "gap":
                gaps.remove((hour, row["ResourceId"]))
                assert Fraction(row["BilledCost"]) == 0, row
                continue
            if row["x_Quality"] == "correction":
                key = (row["x_CorrectsEventId"], int(row["ConsumedQuantity"]), Fraction(row["BilledCost"]))
                corrections[key] -= 1
                total += key[2]
                continue
            count, cost = rows.pop((hour, row["ResourceId"], row["SkuId"], row["x_Quality"]))
            assert count == int(row["ConsumedQuantity"]), f"{count} counted: {row}"
            assert cost == Fraction(row["BilledCost"]), f"{cost} is due: {row}"
            total += cost
    assert not rows, f"not in the export: {rows}"
    assert not any(corrections.values()), f"corrections that the export does not tell: {corrections}"
    assert not gaps, f"gaps that the export does not tell: {gaps}"
    print(f"{float(total):.12f} {len(ids)}")


main()
