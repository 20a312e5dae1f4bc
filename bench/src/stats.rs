//! Median, 90th and 99th percentile, and ratios pair by pair.

use serde::Serialize;

/// What is told of a series of measurements.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Summary {
    pub n: usize,
    pub median: f64,
    pub p90: f64,
    pub p99: f64,
}

impl Summary {
    pub fn of(values: &[f64]) -> Option<Self> {
        Some(Summary {
            n: values.len(),
            median: quantile(values, 0.5)?,
            p90: quantile(values, 0.9)?,
            p99: quantile(values, 0.99)?,
        })
    }
}

/// The quantile by linear interpolation between the two nearest ranks.
pub fn quantile(values: &[f64], q: f64) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().checked_sub(1)?;
    let rank = q * last as f64;
    let low = rank.floor();
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let index = low as usize;
    let next = sorted[(index + 1).min(last)];
    Some(sorted[index] + (next - sorted[index]) * (rank - low))
}

/// Median of `peer / ours` over the rounds in which both were measured: above
/// one, ours is that many times better.
pub fn ratio(ours: &[Option<f64>], peer: &[Option<f64>]) -> Option<f64> {
    let ratios: Vec<f64> = ours
        .iter()
        .zip(peer)
        .filter_map(|(ours, peer)| Some((*peer)? / (*ours)?))
        .filter(|ratio| ratio.is_finite())
        .collect();
    quantile(&ratios, 0.5)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_and_p90_interpolate() {
        let summary = Summary::of(&[4.0, 1.0, 3.0, 2.0]).unwrap();
        assert_eq!(summary.median, 2.5);
        assert!((summary.p90 - 3.7).abs() < 1e-9);
        assert_eq!(Summary::of(&[]), None);
    }

    #[test]
    fn ratio_leaves_out_rounds_with_a_failure() {
        let ours = [Some(1.0), None, Some(2.0)];
        let peer = [Some(4.0), Some(9.0), Some(4.0)];
        assert_eq!(ratio(&ours, &peer), Some(3.0));
        assert_eq!(ratio(&[None], &[Some(1.0)]), None);
    }
}
