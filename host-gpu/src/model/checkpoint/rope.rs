//! The rotation of a checkpoint: `rope_theta` and `rope_scaling`, or `rope_parameters` since transformers 5.
//!
//! After `modeling_rope_utils.py`. Where transformers computes other frequencies than
//! `base^(-2i / dims)`, we divide these by factors, one for each pair.

use super::settings::Settings;
use crate::format::FormatError;
use crate::model::config::{Factors, MAX_CONTEXT, Rope};
use std::f64::consts::TAU;

/// How many numbers of a head turn.
pub(super) fn dims(s: Settings<'_>, head_dim: usize) -> Result<usize, FormatError> {
    const KEY: &str = "partial_rotary_factor";
    let nested = scaling(s)?.map(|s| s.float(KEY)).transpose()?.flatten();
    let part = nested.or(s.float(KEY)?).unwrap_or(1.0);
    Ok((head_dim as f64 * part.clamp(0.0, 1.0)) as usize)
}

/// The object that says how the rotation is stretched, of layers that see everything.
fn scaling(s: Settings<'_>) -> Result<Option<Settings<'_>>, FormatError> {
    match s.inner("rope_parameters")? {
        // Models with two rotations have one object for each.
        Some(all) if all.has("full_attention") => all.inner("full_attention"),
        Some(all) => Ok(Some(all)),
        None => s.inner("rope_scaling"),
    }
}

/// The rotation of layers with a window, where it is another one. It is never stretched.
pub(super) fn local(s: Settings<'_>, base: f64) -> Result<Rope, FormatError> {
    let nested = s.inner("rope_parameters")?.map(|all| all.inner("sliding_attention")).transpose()?.flatten();
    let given = match nested {
        Some(local) if kind(local)? != "default" => return Err(unsupported(kind(local)?, "default")),
        Some(local) => local.float("rope_theta")?,
        None => s.float("rope_local_base_freq")?,
    };
    Ok(Rope::plain(given.unwrap_or(base)))
}

fn kind<'a>(scaling: Settings<'a>) -> Result<&'a str, FormatError> {
    Ok(scaling.text("rope_type")?.or(scaling.text("type")?).unwrap_or("default"))
}

fn unsupported(kind: &str, supported: &str) -> FormatError {
    let what = format!("rope scaling {:?}", kind.chars().take(40).collect::<String>());
    FormatError::Unsupported { what, supported: supported.into() }
}

/// The rotation of layers that see everything: of a head `dims` numbers turn.
pub(super) fn read(s: Settings<'_>, theta: f64, dims: usize, context: usize) -> Result<Rope, FormatError> {
    let Some(scaling) = scaling(s)? else { return Ok(Rope::plain(s.float("rope_theta")?.unwrap_or(theta))) };
    let base = scaling.float("rope_theta")?.or(s.float("rope_theta")?).unwrap_or(theta);
    let stretched = Stretched { s: scaling, base, dims, context, original: original(s, scaling, context)? };
    match kind(scaling)? {
        "default" => Ok(Rope::plain(base)),
        "linear" => Ok(Rope { stretch: scaling.need_float("factor")?, ..Rope::plain(base) }),
        "llama3" => stretched.llama3(),
        // Phi-3's first files say `su`.
        "longrope" | "su" => stretched.longrope(),
        "yarn" => stretched.yarn(),
        other => Err(unsupported(other, "default, linear, llama3, longrope, yarn")),
    }
}

/// The context of training, before it was stretched.
fn original(s: Settings<'_>, scaling: Settings<'_>, context: usize) -> Result<f64, FormatError> {
    const KEY: &str = "original_max_position_embeddings";
    let given = s.number(KEY, MAX_CONTEXT)?.or(scaling.number(KEY, MAX_CONTEXT)?);
    match given {
        Some(n) if n < 2 => Err(s.wrong(KEY, format!("is {n}, less than 2"))),
        given => Ok(given.map_or(context as f64, |n| n as f64)),
    }
}

struct Stretched<'a> {
    s: Settings<'a>,
    base: f64,
    dims: usize,
    context: usize,
    original: f64,
}

impl Stretched<'_> {
    /// Pairs that turn slowly turn `factor` times slower, fast ones as before, those between in part.
    fn llama3(&self) -> Result<Rope, FormatError> {
        let factor = self.s.need_float("factor")?;
        let (low, high) = (self.s.need_float("low_freq_factor")?, self.s.need_float("high_freq_factor")?);
        if low <= 0.0 || high <= low {
            return Err(self.s.wrong("high_freq_factor", format!("is {high}, not over low_freq_factor {low} over 0")));
        }
        self.rope(1.0, |i| {
            let turns = self.original * self.frequency(i) / TAU;
            let smooth = ((turns - low) / (high - low)).clamp(0.0, 1.0);
            1.0 / ((1.0 - smooth) / factor + smooth)
        })
    }

    /// Factors from the file: the long ones if the context is longer than that of training.
    fn longrope(&self) -> Result<Rope, FormatError> {
        let key = if self.context as f64 > self.original { "long_factor" } else { "short_factor" };
        let factors = self.s.floats(key, self.dims / 2)?.ok_or_else(|| self.s.wrong(key, "is missing".into()))?;
        let factor = self.s.float("factor")?.unwrap_or(self.context as f64 / self.original);
        let usual = if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / self.original.ln()).sqrt() };
        self.rope(self.s.float("attention_factor")?.unwrap_or(usual), |i| factors[i].into())
    }

    /// YaRN, arXiv 2309.00071: pairs that turn less than `beta_slow` times in the context of training are
    /// stretched by `factor`, those that turn more than `beta_fast` times are not.
    fn yarn(&self) -> Result<Rope, FormatError> {
        let factor = match self.s.float("factor")? {
            Some(factor) => factor,
            None => self.context as f64 / self.original,
        };
        let beta = |key, usual: f64| -> Result<f64, FormatError> {
            let turns = self.s.float(key)?.filter(|beta| *beta != 0.0).unwrap_or(usual);
            if turns > 0.0 { Ok(turns) } else { Err(self.s.wrong(key, "is negative".into())) }
        };
        let pair = |turns: f64| self.dims as f64 * (self.original / (turns * TAU)).ln() / (2.0 * self.base.ln());
        let (mut from, mut to) = (pair(beta("beta_fast", 32.0)?), pair(beta("beta_slow", 1.0)?));
        if self.s.flag("truncate")?.unwrap_or(true) {
            (from, to) = (from.floor(), to.ceil());
        }
        let (from, mut to) = (from.max(0.0), to.min(self.dims as f64 - 1.0));
        if from == to {
            to += 0.001;
        }
        let log = |scale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * scale * factor.ln() + 1.0 };
        let set = |key| self.s.float(key).map(|n| n.filter(|n| *n != 0.0));
        let usual = match (set("mscale")?, set("mscale_all_dim")?) {
            (Some(scale), Some(all)) => log(scale) / log(all),
            _ => log(1.0),
        };
        self.rope(self.s.float("attention_factor")?.unwrap_or(usual), |i| {
            let stretched = ((i as f64 - from) / (to - from)).clamp(0.0, 1.0);
            1.0 / (stretched / factor + 1.0 - stretched)
        })
    }

    fn frequency(&self, pair: usize) -> f64 {
        self.base.powf(-2.0 * pair as f64 / self.dims as f64)
    }

    /// The rotation with the divisor that `of` gives for each pair.
    fn rope(&self, magnitude: f64, of: impl Fn(usize) -> f64) -> Result<Rope, FormatError> {
        let factors: Vec<f32> = (0..self.dims / 2).map(|i| of(i) as f32).collect();
        if !magnitude.is_finite() || factors.iter().any(|f| !f.is_finite() || *f <= 0.0) {
            return Err(self.s.wrong("rope_scaling", "gives frequencies that are no positive numbers".into()));
        }
        Ok(Rope { factors: Some(Factors::Given(factors)), magnitude, ..Rope::plain(self.base) })
    }
}
