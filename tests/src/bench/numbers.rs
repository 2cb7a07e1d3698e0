//! Medians and quantiles.

use std::time::Duration;

/// A sample, sorted.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sample(Vec<f64>);

impl Sample {
    /// Of these values; what is no number is left out.
    pub(crate) fn new(values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<_> = values.into_iter().filter(|v| v.is_finite()).collect();
        values.sort_unstable_by(f64::total_cmp);
        Self(values)
    }

    /// Of these times, in milliseconds.
    pub(crate) fn of_times(times: &[Duration]) -> Self {
        Self::new(times.iter().map(|time| time.as_secs_f64() * 1e3))
    }

    /// How many.
    pub(crate) const fn len(&self) -> usize {
        self.0.len()
    }

    /// The value below which `percent` of all lie; 0 of none.
    pub(crate) fn quantile(&self, percent: usize) -> f64 {
        let last = self.0.len().saturating_sub(1);
        let index = (last * percent + 50) / 100;
        self.0.get(index).copied().unwrap_or_default()
    }

    /// The middle one.
    pub(crate) fn median(&self) -> f64 {
        self.quantile(50)
    }

    /// Where the median of all that could be measured lies, with 95 % confidence: the order statistics
    /// next to `n / 2 - 0.98 * sqrt(n)` on either side.
    pub(crate) fn median_interval(&self) -> (f64, f64) {
        let n = self.0.len();
        let low = n.saturating_sub((n * 4).isqrt()) / 2;
        let at = |index: usize| self.0.get(index).copied().unwrap_or_default();
        let low = low.saturating_sub(1);
        (at(low), at(n.saturating_sub(low + 1)))
    }

    /// Lowest and highest tenth, in words.
    pub(crate) fn spread(&self, digits: usize) -> String {
        let (low, high) = (self.quantile(10), self.quantile(90));
        format!("{low:.digits$} to {high:.digits$}")
    }
}

/// A count as a number to divide by.
#[expect(
    clippy::cast_precision_loss,
    reason = "no count here comes near 2^53, and a ratio needs three digits"
)]
pub(crate) const fn float(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_members_of_the_sample() {
        let sample = Sample::new((1..=100).map(f64::from));
        assert!((sample.quantile(0) - 1.0).abs() < 1e-9);
        assert!((sample.quantile(99) - 99.0).abs() < 1e-9);
        assert!((sample.quantile(100) - 100.0).abs() < 1e-9);
        let (low, high) = sample.median_interval();
        assert!((low - 40.0).abs() < 1e-9, "{low}");
        assert!((high - 61.0).abs() < 1e-9, "{high}");
        assert!(Sample::default().median().abs() < 1e-9);
    }
}
