//! The card's kernels against references in double precision, on a stand-in driver, or on a card with `HOB_TEST_GPU=1`.

#![expect(clippy::print_stdout, reason = "how close the numbers are, and what was skipped")]

#[path = "cuda/again.rs"]
mod again;
#[path = "cuda/attention.rs"]
mod attention;
#[path = "cuda/draw.rs"]
mod draw;
#[path = "cuda/life.rs"]
mod life;
#[path = "cuda/model.rs"]
mod model;
#[path = "cuda/products.rs"]
mod products;
#[path = "cuda/rows.rs"]
mod rows;
#[path = "cuda/shim.rs"]
mod shim;
mod support;

use hob_gpu::ops::cuda::Device;

/// The card, or what stands in for it; `None` where neither can be had.
fn device() -> Option<Device> {
    support::driver::driver().then(|| Device::open(0, None).expect("the card opens"))
}

/// Numbers that are the same each time, from -1 to 1.
struct Noise(u64);

impl Noise {
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn one(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    fn many(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.one()).collect()
    }
}

/// The root of the mean square of the errors over that of what is wanted; infinite where something is no number.
fn apart(got: &[f32], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    let error: f64 = got.iter().zip(want).map(|(got, want)| (f64::from(*got) - want).powi(2)).sum();
    let size: f64 = want.iter().map(|want| want * want).sum();
    let apart = (error / size.max(1e-300)).sqrt();
    if apart.is_nan() { f64::INFINITY } else { apart }
}
