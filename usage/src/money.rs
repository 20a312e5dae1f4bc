//! Exact arithmetic: whole numbers of what was counted, decimal prices, one rounding.

use libsnap::error::{Error, Result};
use num_bigint::BigUint;
use rust_decimal::Decimal;

/// Of a quantity that is shown.
const QUANTITY_DECIMALS: u32 = 12;

/// `count / per_unit * price`, rounded once, half to even, to so many decimals.
pub fn cost(count: u128, per_unit: u128, price: Decimal, decimals: u32) -> Result<Decimal> {
    let numerator = BigUint::from(count) * BigUint::from(price.mantissa().unsigned_abs()) * power(decimals);
    let denominator = BigUint::from(per_unit) * power(price.scale());
    decimal(&round(&numerator, &denominator), decimals)
}

/// `count / per_unit`, as it is shown: costs are made of `count`.
pub fn quantity(count: u128, per_unit: u128) -> Result<Decimal> {
    let numerator = BigUint::from(count) * power(QUANTITY_DECIMALS);
    let shown = decimal(&round(&numerator, &BigUint::from(per_unit)), QUANTITY_DECIMALS)?;
    Ok(shown.normalize())
}

/// How many are counted in so many units; a part of one is left out.
pub fn count(units: Decimal, per_unit: u128) -> u128 {
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

fn decimal(mantissa: &BigUint, scale: u32) -> Result<Decimal> {
    let mantissa = i128::try_from(mantissa.clone()).ok();
    let fits = mantissa.and_then(|mantissa| Decimal::try_from_i128_with_scale(mantissa, scale).ok());
    fits.ok_or_else(|| Error::failed("an amount has more digits than can be billed").fix("look at the rate card"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GIB_SECOND: u128 = (1 << 30) * 1_000_000_000;

    fn of(count: u128, per_unit: u128, price: &str, decimals: u32) -> String {
        cost(count, per_unit, price.parse().unwrap(), decimals)
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
        assert_eq!(quantity(count, GIB_SECOND).unwrap().to_string(), "62208000");
        assert!(cost(u128::MAX, 1, "1000000000".parse().unwrap(), 10).is_err());
        assert_eq!(super::count("1.5".parse().unwrap(), 1_000_000_000), 1_500_000_000);
    }

    proptest! {
        #[test]
        fn parts_differ_from_the_sum_by_their_rounding(a in 0u128..1 << 90, b in 0u128..1 << 90) {
            let price: Decimal = "0.0000025".parse().unwrap();
            let of = |count| cost(count, GIB_SECOND, price, 6).unwrap();
            let apart = (of(a) + of(b) - of(a + b)).abs();
            prop_assert!(apart <= "0.000002".parse().unwrap(), "{apart}");
        }
    }
}
