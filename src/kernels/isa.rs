//! Which instruction set the kernels run on.

use std::sync::OnceLock;

/// An instruction set that every kernel is built for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isa {
    /// Plain Rust on arrays of sixteen numbers: the twin that the others are tested against.
    Scalar,
    #[cfg(target_arch = "x86_64")]
    /// AVX2 with FMA and F16C.
    Avx2,
    #[cfg(target_arch = "x86_64")]
    /// AVX-512 F, BW, VL and DQ.
    Avx512,
    #[cfg(target_arch = "x86_64")]
    /// AVX-512 with the bf16 dot product.
    Avx512Bf16,
    #[cfg(target_arch = "x86_64")]
    /// The same, with byte dot products and matrix tiles (AMX).
    Amx,
    #[cfg(target_arch = "aarch64")]
    /// NEON, which every AArch64 machine has.
    Neon,
    #[cfg(target_arch = "aarch64")]
    /// NEON with the dot product of bytes, as almost all since 2018 have it.
    NeonDot,
}

impl Isa {
    /// The best instruction set of this machine, looked up once.
    pub fn detected() -> Self {
        static DETECTED: OnceLock<Isa> = OnceLock::new();
        *DETECTED.get_or_init(|| *Self::available().last().unwrap_or(&Isa::Scalar))
    }

    /// All instruction sets that this machine can run, from the simplest to the best.
    pub fn available() -> Vec<Self> {
        let mut found = vec![Isa::Scalar];
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as has;
            if has!("avx2") && has!("fma") && has!("f16c") {
                found.push(Isa::Avx2);
                if has!("avx512f") && has!("avx512bw") && has!("avx512vl") && has!("avx512dq") {
                    found.push(Isa::Avx512);
                    if has!("avx512bf16") {
                        found.push(Isa::Avx512Bf16);
                        if has!("avx512vnni") && super::amx::available() {
                            found.push(Isa::Amx);
                        }
                    }
                }
            }
        }
        #[cfg(target_arch = "aarch64")]
        {
            found.push(Isa::Neon);
            if std::arch::is_aarch64_feature_detected!("dotprod") {
                found.push(Isa::NeonDot);
            }
        }
        found
    }

    /// Whether this instruction set has matrix tiles.
    pub fn has_tiles(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Isa::Amx => true,
            _ => false,
        }
    }

    /// Whether this instruction set has dot products of bytes (AVX512-VNNI, or AArch64's extension), or is the
    /// scalar twin, which does the same in plain Rust.
    pub fn has_byte_dot(self) -> bool {
        match self {
            Isa::Scalar => true,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Avx512Bf16 => std::arch::is_x86_feature_detected!("avx512vnni"),
            #[cfg(target_arch = "x86_64")]
            Isa::Amx => true,
            #[cfg(target_arch = "aarch64")]
            Isa::NeonDot => true,
            _ => false,
        }
    }

    /// Whether [`super::Precision::Fast`] differs from exact on this instruction set: the machine has the
    /// `bf16` dot product, or it is the scalar twin, which does the same in plain Rust.
    pub fn has_bf16_dot(self) -> bool {
        match self {
            Isa::Scalar => true,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16 | Isa::Amx => true,
            _ => false,
        }
    }

    /// Whether [`super::Precision::Fast`] is faster than exact here: tiles are by far; the dot product is
    /// on AMD's cores, while Intel's do half as many multiply-adds with it as with plain `f32`.
    pub fn bf16_dot_pays(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Isa::Amx => true,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16 => made_by_amd(),
            _ => false,
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn made_by_amd() -> bool {
    let vendor = std::arch::x86_64::__cpuid(0);
    [vendor.ebx, vendor.edx, vendor.ecx] == [*b"Auth", *b"enti", *b"cAMD"].map(u32::from_le_bytes)
}
