//! Operations on the processor's own cores.
//!
//! [`reference`](mod@reference) says in plain loops what each operation means. The kernels that run are
//! written once over [`lanes`], compiled once for each [`CodePath`], and chosen when the engine
//! starts. Every result is computed in an order that depends on nothing but its own row: the same
//! sequence gives the same bits alone, in a batch, and at any chunking of its prompt.

use std::fmt;

pub mod attention;
pub mod blocks;
pub mod bytes;
pub mod groups;
pub mod lanes;
pub mod matmul;
#[cfg(target_arch = "aarch64")]
pub mod neon;
pub mod reference;
pub mod vector;
pub mod woven;

/// Which instructions the kernels use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CodePath {
    /// AVX-512 (F, BW, VL, DQ, VNNI).
    Avx512Vnni,
    /// AVX2, FMA and F16C.
    Avx2,
    /// NEON, as every 64-bit ARM processor has it.
    Neon,
    /// What the compiler makes of plain loops.
    Portable,
}

impl fmt::Display for CodePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Avx512Vnni => "avx512-vnni",
            Self::Avx2 => "avx2",
            Self::Neon => "neon",
            Self::Portable => "portable",
        })
    }
}

impl CodePath {
    /// All of them, the fastest first.
    pub const ALL: &[Self] = &[Self::Avx512Vnni, Self::Avx2, Self::Neon, Self::Portable];

    /// Whether this processor can run it.
    pub fn available(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vnni => {
                is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512vnni")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512dq")
                    && Self::Avx2.available()
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => {
                is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
            }
            #[cfg(not(target_arch = "x86_64"))]
            Self::Avx512Vnni | Self::Avx2 => false,
            #[cfg(target_arch = "aarch64")]
            Self::Neon => cfg!(target_endian = "little") && std::arch::is_aarch64_feature_detected!("neon"),
            #[cfg(not(target_arch = "aarch64"))]
            Self::Neon => false,
            Self::Portable => true,
        }
    }
}

/// The other size of a tile of tokens, on paths whose full tile is larger.
pub const SMALL_TILE: usize = 4;

/// What activations become before they meet quantised weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Activations {
    /// They stay floats: the reference, several times slower.
    F32,
    /// Groups of 32 become bytes with a scale, and products are made of integers.
    #[default]
    Q8,
}

impl fmt::Display for Activations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Q8 => "q8",
        })
    }
}

/// A code path that this processor was asked for and has, and how it treats activations.
#[derive(Clone, Copy, Debug)]
pub struct Cpu {
    path: CodePath,
    activations: Activations,
}

/// Work written over [`bytes::Bytes`]. `ROWS` times `TOKENS` vectors of float sums fit the path's registers, and
/// `STRIPS` times `TOKENS` vectors of both integer and float sums.
pub trait Task {
    /// Does it. Implementations are `#[inline(always)]`, so that they are compiled for the path.
    fn run<L: bytes::Bytes, const ROWS: usize, const TOKENS: usize, const STRIPS: usize>(self);
}

impl Cpu {
    /// `path` if the processor has it; the best one if `None`.
    pub fn new(path: Option<CodePath>) -> Option<Self> {
        match path {
            Some(path) => path.available().then_some(Self { path, activations: Activations::default() }),
            None => CodePath::ALL.iter().find_map(|path| Self::new(Some(*path))),
        }
    }

    /// The same with activations treated so.
    pub fn with_activations(self, activations: Activations) -> Self {
        Self { activations, ..self }
    }

    /// What activations become.
    pub fn activations(self) -> Activations {
        self.activations
    }

    /// The path.
    pub fn path(self) -> CodePath {
        self.path
    }

    /// How many tokens a tile of the matrix product has for `tokens` tokens: what fits the path's
    /// registers, or [`SMALL_TILE`], where that leaves so many places empty that it costs more.
    pub fn tile_tokens(self, tokens: usize) -> usize {
        let full = match self.path {
            CodePath::Avx512Vnni => 6,
            CodePath::Avx2 | CodePath::Portable => return 2,
            CodePath::Neon => return 3,
        };
        let places = |tile: usize| tokens.next_multiple_of(tile);
        if places(SMALL_TILE) * 11 < places(full) * 10 { SMALL_TILE } else { full }
    }

    /// Runs `task` compiled for the path.
    #[inline]
    #[cfg_attr(
        any(target_arch = "x86_64", target_arch = "aarch64"),
        expect(unsafe_code, reason = "calls code compiled for what the processor was seen to have")
    )]
    pub fn run<T: Task>(self, task: T) {
        match self.path {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: a `Cpu` with this path exists only if `available` saw the features.
            CodePath::Avx512Vnni => unsafe { avx512(task) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            CodePath::Avx2 => unsafe { avx2(task) },
            #[cfg(target_arch = "aarch64")]
            // SAFETY: a `Cpu` with this path exists only if `available` saw the feature.
            CodePath::Neon => unsafe { neon(task) },
            _ => task.run::<lanes::Portable, 2, 2, 1>(),
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn avx512<T: Task>(task: T) {
    task.run::<lanes::Avx512Vnni, 4, 6, 2>();
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn avx2<T: Task>(task: T) {
    task.run::<lanes::Avx2, 3, 2, 1>();
}

#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "neon")]
fn neon<T: Task>(task: T) {
    task.run::<neon::Neon, 2, 3, 1>();
}
