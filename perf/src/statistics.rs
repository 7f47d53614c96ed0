//! Figures of several rounds: minimum, median, maximum.

use serde::{Deserialize, Serialize};

/// A figure over the rounds of one run.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Spread {
    pub(crate) min: f64,
    pub(crate) median: f64,
    pub(crate) max: f64,
}

impl Spread {
    /// `None` without samples.
    pub(crate) fn of(samples: &[f64]) -> Option<Self> {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let middle = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 {
            *sorted.get(middle)?
        } else {
            f64::midpoint(*sorted.get(middle - 1)?, *sorted.get(middle)?)
        };
        Some(Self { min, median, max })
    }
}

impl std::fmt::Display for Spread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let digits = if self.median < 10.0 { 2 } else { usize::from(self.median < 100.0) };
        write!(f, "{:.digits$}/{:.digits$}/{:.digits$}", self.min, self.median, self.max)
    }
}

/// Median of the ratios of paired rounds: what drifts between rounds falls out.
pub(crate) fn paired_ratio(ours: &[f64], theirs: &[f64]) -> Option<Spread> {
    let ratios: Vec<f64> = ours.iter().zip(theirs).map(|(our, their)| our / their).collect();
    Spread::of(&ratios)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_lies_between() {
        let spread = Spread::of(&[3.0, 1.0, 2.0, 10.0]).unwrap();
        assert!((spread.min - 1.0).abs() < f64::EPSILON && (spread.max - 10.0).abs() < f64::EPSILON);
        assert!((spread.median - 2.5).abs() < f64::EPSILON);
        assert!(Spread::of(&[]).is_none());
        let ratio = paired_ratio(&[1.0, 4.0], &[2.0, 4.0]).unwrap();
        assert!((ratio.median - 0.75).abs() < f64::EPSILON);
    }
}
