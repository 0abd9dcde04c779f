//! Operations on the processor's own cores.
//!
//! [`reference`](mod@reference) says in plain loops what each operation means. The kernels that run are
//! written once over [`lanes`], compiled once for each [`CodePath`], and chosen when the engine
//! starts. Every result is computed in an order that depends on nothing but its own row: the same
//! sequence gives the same bits alone, in a batch, and at any chunking of its prompt.

use std::fmt;

pub mod attention;
pub mod blocks;
pub mod lanes;
pub mod matmul;
pub mod reference;
pub mod vector;

/// Which instructions the kernels use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CodePath {
    /// AVX-512 (F, BW, VL, DQ).
    Avx512,
    /// AVX2, FMA and F16C.
    Avx2,
    /// What the compiler makes of plain loops.
    Portable,
}

impl fmt::Display for CodePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Avx512 => "avx512",
            Self::Avx2 => "avx2",
            Self::Portable => "portable",
        })
    }
}

impl CodePath {
    /// Whether this processor can run it.
    pub fn available(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => {
                is_x86_feature_detected!("avx512f")
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
            Self::Avx512 | Self::Avx2 => false,
            Self::Portable => true,
        }
    }
}

/// The other size of a tile of tokens, on paths whose full tile is larger.
pub const SMALL_TILE: usize = 4;

/// A code path that this processor was asked for and has.
#[derive(Clone, Copy, Debug)]
pub struct Cpu {
    path: CodePath,
}

/// Work written over [`lanes::Lanes`]. `ROWS` times `TOKENS` accumulators fit the path's registers.
pub trait Task {
    /// Does it. Implementations are `#[inline(always)]`, so that they are compiled for the path.
    fn run<L: lanes::Lanes, const ROWS: usize, const TOKENS: usize>(self);
}

impl Cpu {
    /// `path` if the processor has it; the best one if `None`.
    pub fn new(path: Option<CodePath>) -> Option<Self> {
        match path {
            Some(path) => path.available().then_some(Self { path }),
            None => [CodePath::Avx512, CodePath::Avx2, CodePath::Portable]
                .into_iter()
                .find(|p| p.available())
                .map(|path| Self { path }),
        }
    }

    /// The path.
    pub fn path(self) -> CodePath {
        self.path
    }

    /// How many tokens a tile of the matrix product has for `tokens` tokens: what fits the path's
    /// registers, or [`SMALL_TILE`] where that leaves fewer places empty.
    pub fn tile_tokens(self, tokens: usize) -> usize {
        let full = match self.path {
            CodePath::Avx512 => 6,
            CodePath::Avx2 | CodePath::Portable => return 2,
        };
        let places = |tile: usize| tokens.next_multiple_of(tile);
        if places(SMALL_TILE) < places(full) { SMALL_TILE } else { full }
    }

    /// Runs `task` compiled for the path.
    #[inline]
    #[expect(unsafe_code, reason = "calls code compiled for what the processor was seen to have")]
    pub fn run<T: Task>(self, task: T) {
        match self.path {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: a `Cpu` with this path exists only if `available` saw the features.
            CodePath::Avx512 => unsafe { avx512(task) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            CodePath::Avx2 => unsafe { avx2(task) },
            _ => task.run::<lanes::Portable, 2, 2>(),
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
fn avx512<T: Task>(task: T) {
    task.run::<lanes::Avx512, 4, 6>();
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn avx2<T: Task>(task: T) {
    task.run::<lanes::Avx2, 3, 2>();
}
