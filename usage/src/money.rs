//! Exact arithmetic: whole numbers of what was counted, decimal prices, one rounding.

use libsnap::error::{Error, Result};
use num_bigint::BigUint;
use rust_decimal::Decimal;

/// Of a quantity that is shown.
const QUANTITY_DECIMALS: u32 = 12;

/// The sum of `count / per_unit * price` of these, rounded once, half to even, to so many
/// decimals.
pub fn cost(counts: &[(u128, Decimal)], per_unit: u128, decimals: u32) -> Result<Decimal> {
    let scale = counts.iter().map(|(_, price)| price.scale()).max().unwrap_or_default();
    // Most are small enough for the processor.
    let small = || {
        let exact = |(count, price): &(u128, Decimal)| {
            let price = price
                .mantissa()
                .unsigned_abs()
                .checked_mul(10u128.checked_pow(scale - price.scale())?)?;
            count.checked_mul(price)
        };
        let sum = counts
            .iter()
            .try_fold(0u128, |sum, part| sum.checked_add(exact(part)?))?;
        let numerator = sum.checked_mul(10u128.checked_pow(decimals)?)?;
        round_small(numerator, per_unit.checked_mul(10u128.checked_pow(scale)?)?)
    };
    if let Some(mantissa) = small() {
        return decimal(i128::try_from(mantissa).ok(), decimals);
    }
    let exact = |(count, price): &(u128, Decimal)| {
        BigUint::from(*count) * BigUint::from(price.mantissa().unsigned_abs()) * power(scale - price.scale())
    };
    let numerator = counts.iter().map(exact).sum::<BigUint>() * power(decimals);
    let denominator = BigUint::from(per_unit) * power(scale);
    decimal(round(&numerator, &denominator).try_into().ok(), decimals)
}

/// `count / per_unit`, as it is shown: costs are made of `count`.
pub fn quantity(count: i128, per_unit: u128) -> Result<Decimal> {
    let many = count.unsigned_abs();
    let small = many.checked_mul(10u128.pow(QUANTITY_DECIMALS));
    let mantissa = match small.and_then(|numerator| round_small(numerator, per_unit)) {
        Some(mantissa) => mantissa.try_into().ok(),
        None => round(
            &(BigUint::from(many) * power(QUANTITY_DECIMALS)),
            &BigUint::from(per_unit),
        )
        .try_into()
        .ok(),
    };
    let shown = decimal(mantissa, QUANTITY_DECIMALS)?.normalize();
    Ok(if count < 0 { -shown } else { shown })
}

/// How many are counted in so many units; a part of one is left out.
pub fn count(units: Decimal, per_unit: u128) -> u128 {
    if units.is_zero() {
        return 0;
    }
    let whole = BigUint::from(units.mantissa().unsigned_abs()) * BigUint::from(per_unit) / power(units.scale());
    u128::try_from(whole).unwrap_or(u128::MAX)
}

fn power(of_ten: u32) -> BigUint {
    BigUint::from(10u32).pow(of_ten)
}

/// Half to even.
fn round(numerator: &BigUint, denominator: &BigUint) -> BigUint {
    let whole = numerator / denominator;
    let twice = (numerator - &whole * denominator) * 2u32;
    let up = twice > *denominator || twice == *denominator && whole.bit(0);
    whole + u32::from(up)
}

/// The same, where twice the numerator fits.
fn round_small(numerator: u128, denominator: u128) -> Option<u128> {
    let (whole, twice) = (numerator / denominator, (numerator % denominator).checked_mul(2)?);
    let up = twice > denominator || twice == denominator && whole % 2 == 1;
    Some(whole + u128::from(up))
}

fn decimal(mantissa: Option<i128>, scale: u32) -> Result<Decimal> {
    let fits = mantissa.and_then(|mantissa| Decimal::try_from_i128_with_scale(mantissa, scale).ok());
    fits.ok_or_else(|| Error::failed("an amount has more digits than can be billed").fix("look at the rate card"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GIB_SECOND: u128 = (1 << 30) * 1_000_000_000;

    fn of(count: u128, per_unit: u128, price: &str, decimals: u32) -> String {
        cost(&[(count, price.parse().unwrap())], per_unit, decimals)
            .unwrap()
            .to_string()
    }

    #[test]
    fn half_goes_to_even() {
        assert_eq!(of(5, 10, "1", 0), "0");
        assert_eq!(of(15, 10, "1", 0), "2");
        assert_eq!(of(25, 10, "1", 0), "2");
        assert_eq!(of(251, 100, "1", 0), "3");
        assert_eq!(of(1, 3, "1", 6), "0.333333");
    }

    #[test]
    fn large_ones_are_exact() {
        // A month of 24 GiB at a price with 18 digits; by another program.
        let count = 24 * GIB_SECOND * 2_592_000 + 1;
        assert_eq!(of(count, GIB_SECOND, "0.000002500000000001", 10), "155.5200000001");
        assert_eq!(
            quantity(count.cast_signed(), GIB_SECOND).unwrap().to_string(),
            "62208000"
        );
        assert!(cost(&[(u128::MAX, "1000000000".parse().unwrap())], 1, 10).is_err());
        // Half a cent of each price is one cent: rounded once.
        let two = [(1, "0.005".parse().unwrap()), (1, "0.0050".parse().unwrap())];
        assert_eq!(cost(&two, 1, 2).unwrap().to_string(), "0.01");
        assert_eq!(super::count("1.5".parse().unwrap(), 1_000_000_000), 1_500_000_000);
    }

    proptest! {
        /// The short way and the long one round the same.
        #[test]
        fn small_ones_are_as_exact(count in 0u128..1 << 60, per_unit in 1u128..1 << 30, price in 0u32..1000) {
            let price = Decimal::new(price.into(), 2);
            let numerator = BigUint::from(count) * BigUint::from(price.mantissa().unsigned_abs()) * power(6);
            let long = round(&numerator, &(BigUint::from(per_unit) * power(price.scale())));
            let long = decimal(long.try_into().ok(), 6).unwrap();
            prop_assert_eq!(cost(&[(count, price)], per_unit, 6).unwrap(), long);
        }

        #[test]
        fn parts_differ_from_the_sum_by_their_rounding(a in 0u128..1 << 90, b in 0u128..1 << 90) {
            let price: Decimal = "0.0000025".parse().unwrap();
            let of = |count| cost(&[(count, price)], GIB_SECOND, 6).unwrap();
            let apart = (of(a) + of(b) - of(a + b)).abs();
            prop_assert!(apart <= "0.000002".parse().unwrap(), "{apart}");
        }
    }
}
