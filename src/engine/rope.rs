//! Rotary position embedding (Su et al., "RoFormer"): cosines and sines of the positions seen so far.

/// Cosines and sines for positions from 0 up, `head_dim / 2` of each for a position. Grows as positions come.
#[derive(Debug)]
pub struct RopeTable {
    inverse_frequencies: Vec<f32>,
    cosines: Vec<f32>,
    sines: Vec<f32>,
}

/// Fewest positions that are covered at once.
const LEAST: usize = 1024;

impl RopeTable {
    pub fn new(inverse_frequencies: Vec<f32>) -> Self {
        Self {
            inverse_frequencies,
            cosines: Vec::new(),
            sines: Vec::new(),
        }
    }

    /// Numbers of each kind for one position.
    pub fn width(&self) -> usize {
        self.inverse_frequencies.len()
    }

    /// Makes the table reach `position`, by doubling, and says whether it grew. The angle is a product in
    /// f32, as in the models' training.
    pub fn cover(&mut self, position: usize) -> bool {
        let covered = self.cosines.len() / self.width();
        if position < covered {
            return false;
        }
        let end = (position + 1).next_power_of_two().max(LEAST);
        for position in covered..end {
            for frequency in &self.inverse_frequencies {
                let angle = f64::from(position as f32 * frequency);
                self.cosines.push(angle.cos() as f32);
                self.sines.push(angle.sin() as f32);
            }
        }
        true
    }

    /// The cosines of all covered positions, one position after another.
    pub fn cosines(&self) -> &[f32] {
        &self.cosines
    }

    /// The sines of all covered positions, one position after another.
    pub fn sines(&self) -> &[f32] {
        &self.sines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_without_changing_what_is_there() {
        let mut table = RopeTable::new(vec![1.0, 0.5]);
        assert!(table.cover(3));
        assert!(!table.cover(1023));
        assert_eq!(table.cosines()[2 * 2], 2f32.cos());
        assert_eq!(table.sines()[3 * 2 + 1], 1.5f32.sin());
        let before = table.cosines().to_vec();
        assert!(table.cover(5000));
        assert_eq!(&table.cosines()[..before.len()], before);
        assert!(table.sines().len() > 5000 * 2);
    }
}
