use super::*;
use crate::kernels::ThreadPool;
use crate::kernels::testing::{bits, numbers};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use proptest::prelude::*;

/// `x · weightsᵀ` in `f64`.
fn reference(x: &[f32], weights: &[f32], bias: Option<&[f32]>, inputs: usize) -> Vec<f64> {
    let mut out = Vec::new();
    for x in x.chunks_exact(inputs) {
        for (output, w) in weights.chunks_exact(inputs).enumerate() {
            let dot: f64 = x
                .iter()
                .zip(w)
                .map(|(&a, &b)| f64::from(a) * f64::from(b))
                .sum();
            out.push(dot + bias.map_or(0.0, |bias| f64::from(bias[output])));
        }
    }
    out
}

fn assert_close(found: &[f32], expected: &[f64], tolerance: f64, what: &str) {
    let largest = expected.iter().fold(1e-3f64, |a, &b| a.max(b.abs()));
    for (index, (&found, &expected)) in found.iter().zip(expected).enumerate() {
        let error = (f64::from(found) - expected).abs() / largest;
        assert!(
            error <= tolerance,
            "{what}: element {index} is {found}, not {expected}"
        );
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Format {
    F32,
    F16,
    Bf16,
    Bf16Fast,
}

const FORMATS: [Format; 4] = [Format::F32, Format::F16, Format::Bf16, Format::Bf16Fast];

/// A packed matrix of pseudo-random weights, and the weights that it stands for.
fn matrix(format: Format, out: usize, inputs: usize) -> (PackedMatrix, Vec<f32>) {
    let weights = numbers(out * inputs, (out * 31 + inputs) as u64);
    let halves: Vec<f16> = weights.iter().map(|&x| f16::from_f32(x)).collect();
    let brains: Vec<bf16> = weights.iter().map(|&x| bf16::from_f32(x)).collect();
    let from_brains = || PackedMatrix::from_bf16(&brains, out, inputs).unwrap();
    let widened = || brains.iter().map(|x| x.to_f32()).collect();
    match format {
        Format::F32 => (
            PackedMatrix::from_f32(&weights, out, inputs).unwrap(),
            weights,
        ),
        Format::F16 => {
            let widened = halves.iter().map(|x| x.to_f32()).collect();
            (
                PackedMatrix::from_f16(&halves, out, inputs).unwrap(),
                widened,
            )
        }
        Format::Bf16 => (from_brains(), widened()),
        Format::Bf16Fast => (from_brains().with_precision(Precision::Fast), widened()),
    }
}

#[test]
fn dense_products_match_the_reference_on_every_instruction_set() {
    let pool = ThreadPool::new(2).unwrap();
    for isa in Isa::available() {
        for format in FORMATS {
            for (out, inputs) in [(1, 1), (7, 3), (16, 16), (33, 65), (100, 127), (256, 192)] {
                let (packed, weights) = matrix(format, out, inputs);
                let bias = numbers(out, 5);
                for rows in [1, 2, 3, 5, 12, 13, 70] {
                    let x = numbers(rows * inputs, rows as u64);
                    let mut found = vec![f32::NAN; rows * out];
                    packed
                        .matmul_on(isa, &pool, &x, Some(&bias), &mut found)
                        .unwrap();
                    let expected = reference(&x, &weights, Some(&bias), inputs);
                    let fast = format == Format::Bf16Fast && isa.has_bf16_dot();
                    let tolerance = if fast { 1e-2 } else { 2e-6 };
                    let what = format!("{isa:?} {format:?} {rows}×{inputs}×{out}");
                    assert_close(&found, &expected, tolerance, &what);
                }
            }
        }
    }
}

#[test]
fn every_instruction_set_gives_the_scalar_twins_bits() {
    if !cfg!(any(target_feature = "fma", target_arch = "aarch64")) {
        return;
    }
    let pool = ThreadPool::new(1).unwrap();
    for format in [Format::F32, Format::F16, Format::Bf16] {
        let (packed, _) = matrix(format, 70, 51);
        let x = numbers(19 * 51, 3);
        let mut twin = vec![0.0; 19 * 70];
        packed
            .matmul_on(Isa::Scalar, &pool, &x, None, &mut twin)
            .unwrap();
        for isa in Isa::available() {
            let mut found = vec![0.0; 19 * 70];
            packed.matmul_on(isa, &pool, &x, None, &mut found).unwrap();
            assert_eq!(bits(&found), bits(&twin), "{isa:?} {format:?}");
        }
    }
}

#[test]
fn the_fast_product_is_the_exact_one_of_rounded_activations() {
    let pool = ThreadPool::new(1).unwrap();
    for inputs in [51, 96] {
        let (packed, weights) = matrix(Format::Bf16Fast, 70, inputs);
        let x = numbers(19 * inputs, 3);
        let rounded: Vec<f32> = x.iter().map(|&x| bf16::from_f32(x).to_f32()).collect();
        let expected = reference(&rounded, &weights, None, inputs);
        for isa in Isa::available()
            .into_iter()
            .filter(|isa| isa.has_bf16_dot())
        {
            let mut found = vec![0.0; 19 * 70];
            packed.matmul_on(isa, &pool, &x, None, &mut found).unwrap();
            assert_close(&found, &expected, 2e-6, &format!("{isa:?} {inputs}"));
        }
    }
}

/// What matrix tiles compute, one number at a time.
fn tile_twin(x: &[f32], weights: &[f32], inputs: usize) -> Vec<f32> {
    let mut out = Vec::new();
    for x in x.chunks_exact(inputs) {
        for w in weights.chunks_exact(inputs) {
            let mut sum = 0.0f32;
            for (x, w) in x.chunks_exact(32).zip(w.chunks_exact(32)) {
                let mut halves = [0.0f32; 2];
                for (i, (&x, &w)) in x.iter().zip(w).enumerate() {
                    let x = bf16::from_f32(x).to_f32();
                    halves[i % 2] = x.mul_add(w, halves[i % 2]);
                }
                sum += halves[0] + halves[1];
            }
            out.push(sum);
        }
    }
    out
}

#[test]
fn matrix_tiles_give_the_bits_of_their_twin() {
    let Some(isa) = Isa::available().into_iter().find(|isa| isa.has_tiles()) else {
        return;
    };
    for threads in [1, 3] {
        let pool = ThreadPool::new(threads).unwrap();
        for (out, inputs) in [(16, 32), (37, 96), (200, 1056)] {
            let (packed, weights) = matrix(Format::Bf16Fast, out, inputs);
            for rows in [1, 16, 33, 150] {
                let x = numbers(rows * inputs, 3);
                let mut found = vec![f32::NAN; rows * out];
                packed.matmul_on(isa, &pool, &x, None, &mut found).unwrap();
                let mut twin = tile_twin(&x, &weights, inputs);
                assert_eq!(bits(&found), bits(&twin), "{rows}×{inputs}×{out}");
                let bias = numbers(out, 8);
                packed
                    .matmul_on(isa, &pool, &x, Some(&bias), &mut found)
                    .unwrap();
                for row in twin.chunks_exact_mut(out) {
                    row.iter_mut().zip(&bias).for_each(|(x, bias)| *x += bias);
                }
                assert_eq!(bits(&found), bits(&twin), "{rows}×{inputs}×{out} with bias");
            }
        }
    }
}

/// All rows at once and each row alone, at another place and with another number of threads.
fn assert_rows_independent(packed: &PackedMatrix, isa: Isa, rows: usize, what: &str) {
    let (inputs, out) = (packed.in_features(), packed.out_features());
    let x = numbers(rows * inputs, 11);
    let pools = [1, 2, 5].map(|threads| ThreadPool::new(threads).unwrap());
    let mut whole = vec![0.0; rows * out];
    packed
        .matmul_on(isa, &pools[1], &x, None, &mut whole)
        .unwrap();
    for count in 1..=rows {
        let first = rows - count;
        let mut part = vec![0.0; count * out];
        let pool = &pools[count % pools.len()];
        packed
            .matmul_on(isa, pool, &x[first * inputs..], None, &mut part)
            .unwrap();
        assert!(
            bits(&part) == bits(&whole[first * out..]),
            "{what}: the last {count} rows differ"
        );
    }
}

#[test]
fn a_row_has_the_same_bits_whatever_the_other_rows() {
    for isa in Isa::available() {
        for format in FORMATS {
            // Large enough for several tiles and threads, and a small one that stays on one thread.
            for (out, inputs) in [(19, 37), (200, 130), (88, 160)] {
                let (packed, _) = matrix(format, out, inputs);
                assert_rows_independent(&packed, isa, 70, &format!("{isa:?} {format:?}"));
            }
        }
    }
}

#[test]
fn many_rows_in_several_blocks_match_few() {
    let pool = ThreadPool::new(3).unwrap();
    let x = numbers(300 * 2048, 7);
    let dense = [Format::F32, Format::Bf16Fast].map(|format| matrix(format, 40, 2048).0);
    let kinds = [
        GgmlDType::Q4K,
        GgmlDType::Q5K,
        GgmlDType::Q6K,
        GgmlDType::Q8_0,
    ];
    let quantized = kinds.map(|kind| quantized(kind, 40, 2048).0);
    for (index, packed) in dense.iter().chain(&quantized).enumerate() {
        let mut whole = vec![0.0; 300 * 40];
        packed.matmul(&pool, &x, None, &mut whole).unwrap();
        for row in [0, 1, 47, 48, 150, 299] {
            let mut alone = vec![0.0; 40];
            packed
                .matmul(&pool, &x[row * 2048..][..2048], None, &mut alone)
                .unwrap();
            let expected = &whole[row * 40..][..40];
            assert_eq!(bits(&alone), bits(expected), "matrix {index}, row {row}");
        }
    }
}

const QUANTIZED: [GgmlDType; 9] = [
    GgmlDType::Q4_0,
    GgmlDType::Q4_1,
    GgmlDType::Q5_0,
    GgmlDType::Q5_1,
    GgmlDType::Q8_0,
    GgmlDType::Q4K,
    GgmlDType::Q5K,
    GgmlDType::Q6K,
    GgmlDType::F16,
];

fn quantized(kind: GgmlDType, out: usize, inputs: usize) -> (PackedMatrix, Vec<f32>) {
    let weights = Tensor::from_vec(numbers(out * inputs, 17), (out, inputs), &Device::Cpu).unwrap();
    let tensor = Arc::new(QTensor::quantize(&weights, kind).unwrap());
    let widened = tensor.dequantize(&Device::Cpu).unwrap();
    let widened = widened.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    (PackedMatrix::from_quantized(&tensor).unwrap(), widened)
}

#[test]
fn quantized_products_match_the_dequantized_reference() {
    let pool = ThreadPool::new(2).unwrap();
    for kind in QUANTIZED {
        let (out, inputs) = (37, 512);
        let (packed, weights) = quantized(kind, out, inputs);
        let bias = numbers(out, 5);
        for rows in [1, 2, 17, 40] {
            let x = numbers(rows * inputs, 3);
            let mut found = vec![f32::NAN; rows * out];
            packed.matmul(&pool, &x, Some(&bias), &mut found).unwrap();
            let expected = reference(&x, &weights, Some(&bias), inputs);
            // The activations are rounded to eight bits.
            assert_close(&found, &expected, 1e-2, &format!("{kind:?} {rows} rows"));
        }
    }
}

#[test]
fn quantized_rows_have_the_same_bits_whatever_the_other_rows() {
    for kind in QUANTIZED {
        let (packed, _) = quantized(kind, 37, 512);
        assert_rows_independent(&packed, Isa::detected(), 40, &format!("{kind:?}"));
    }
}

/// The types that are repacked where there are byte dot products.
const PANELS: [GgmlDType; 5] = [
    GgmlDType::Q4_0,
    GgmlDType::Q8_0,
    GgmlDType::Q4K,
    GgmlDType::Q5K,
    GgmlDType::Q6K,
];

fn quantized_for(isa: Isa, kind: GgmlDType, out: usize, inputs: usize) -> PackedMatrix {
    let weights = Tensor::from_vec(numbers(out * inputs, 17), (out, inputs), &Device::Cpu).unwrap();
    let tensor = Arc::new(QTensor::quantize(&weights, kind).unwrap());
    PackedMatrix::from_quantized_for(isa, &tensor).unwrap()
}

#[test]
fn byte_dot_products_give_the_scalar_twins_bits() {
    if !cfg!(any(target_feature = "fma", target_arch = "aarch64")) {
        return;
    }
    let pool = ThreadPool::new(2).unwrap();
    for kind in PANELS {
        let packed = quantized_for(Isa::Scalar, kind, 70, 512);
        for rows in [1, 2, 5, 19, 45] {
            let x = numbers(rows * 512, 3);
            let mut twin = vec![0.0; rows * 70];
            packed
                .matmul_on(Isa::Scalar, &pool, &x, None, &mut twin)
                .unwrap();
            for isa in Isa::available() {
                let mut found = vec![0.0; rows * 70];
                packed.matmul_on(isa, &pool, &x, None, &mut found).unwrap();
                assert_eq!(bits(&found), bits(&twin), "{isa:?} {kind:?} {rows} rows");
            }
        }
    }
}

/// Blocks of a K-quant with the largest sums that there can be: scales and quants of one size, of one sign or in turn,
/// and a few that make the sums odd.
fn extreme(kind: GgmlDType, out: usize, inputs: usize) -> PackedMatrix {
    let one = f16::ONE.to_le_bytes();
    let block = |output: usize| -> Vec<u8> {
        let odd = [0xff, 0xf7, 0x7f, 0xff][output % 4];
        match kind {
            // Quants of 0 or 63 that stand for -32 and 31, scales of -128.
            GgmlDType::Q6K => {
                let quants = [0u8, 0xff, 0, 0x01][output % 4];
                let mut block = vec![quants; 192];
                block[output % 192] ^= 0x10;
                block.extend([0x80; 16]);
                block.extend(one);
                block
            }
            // All scales and minima 63.
            _ => {
                let mut block = [one, one].concat();
                block.extend([0xff; 12]);
                if kind == GgmlDType::Q5K {
                    block.extend([0xff; 32]);
                }
                block.extend([odd; 128]);
                block
            }
        }
    };
    let bytes: Vec<u8> = (0..out)
        .flat_map(|output| block(output).repeat(inputs / 256))
        .collect();
    let tensor = candle_core::quantized::ggml_file::qtensor_from_ggml(
        kind,
        &bytes,
        vec![out, inputs],
        &Device::Cpu,
    );
    PackedMatrix::from_quantized_for(Isa::Scalar, &Arc::new(tensor.unwrap())).unwrap()
}

#[test]
fn the_largest_sums_have_the_same_bits_in_all_kernels() {
    if !cfg!(any(target_feature = "fma", target_arch = "aarch64")) {
        return;
    }
    let pool = ThreadPool::new(2).unwrap();
    let (out, inputs, rows) = (20, 512, 40);
    for kind in [GgmlDType::Q4K, GgmlDType::Q5K, GgmlDType::Q6K] {
        let packed = extreme(kind, out, inputs);
        // Rows of the largest quants, all of one sign, in turn, or but for a few.
        let x: Vec<f32> = (0..rows * inputs)
            .map(|i| match (i / inputs % 5, i % inputs) {
                (0, _) => 127.0,
                (1, _) => -127.0,
                (2, i) => [127.0, -127.0][i % 2],
                (3, i) => [127.0, 126.0, 1.0][i % 3],
                (_, i) => (i % 255) as f32 - 127.0,
            })
            .collect();
        for isa in Isa::available() {
            let mut whole = vec![0.0; rows * out];
            packed.matmul_on(isa, &pool, &x, None, &mut whole).unwrap();
            for row in 0..5 {
                let mut alone = vec![0.0; out];
                let x = &x[row * inputs..][..inputs];
                packed
                    .matmul_on(Isa::Scalar, &pool, x, None, &mut alone)
                    .unwrap();
                let found = &whole[row * out..][..out];
                assert_eq!(bits(found), bits(&alone), "{isa:?} {kind:?} row {row}");
            }
        }
    }
}

#[test]
fn panels_and_blocks_agree() {
    let Some(without) = Isa::available().into_iter().find(|isa| !isa.has_byte_dot()) else {
        return;
    };
    let pool = ThreadPool::new(2).unwrap();
    for kind in PANELS {
        let panels = quantized_for(Isa::Scalar, kind, 70, 512);
        let blocks = quantized_for(without, kind, 70, 512);
        let x = numbers(7 * 512, 3);
        let [mut a, mut b] = [vec![0.0; 7 * 70], vec![0.0; 7 * 70]];
        panels
            .matmul_on(Isa::Scalar, &pool, &x, None, &mut a)
            .unwrap();
        blocks.matmul_on(without, &pool, &x, None, &mut b).unwrap();
        let b: Vec<f64> = b.into_iter().map(f64::from).collect();
        assert_close(&a, &b, 1e-2, &format!("{kind:?}"));
        assert_rows_independent(&blocks, without, 20, &format!("{kind:?} in blocks"));
        let [mut a, mut b] = [vec![0.0; 512], vec![0.0; 512]];
        panels.read_row(69, &mut a);
        blocks.read_row(69, &mut b);
        assert_eq!(bits(&a), bits(&b), "{kind:?}");
    }
}

#[test]
fn activations_that_are_no_numbers_show_in_the_result() {
    let pool = ThreadPool::new(1).unwrap();
    for kind in PANELS {
        let packed = quantized_for(Isa::Scalar, kind, 16, 512);
        for bad in [f32::NAN, f32::INFINITY] {
            let mut x = numbers(2 * 512, 3);
            x[700] = bad;
            let mut found = vec![0.0; 2 * 16];
            packed.matmul(&pool, &x, None, &mut found).unwrap();
            assert!(found[..16].iter().all(|x| x.is_finite()), "{kind:?}");
            assert!(found[16..].iter().all(|x| !x.is_finite()), "{kind:?}");
        }
    }
}

#[test]
fn a_stack_of_mixed_formats_is_its_parts_side_by_side() {
    let pool = ThreadPool::new(2).unwrap();
    let parts = || {
        vec![
            quantized(GgmlDType::Q4K, 48, 256).0,
            matrix(Format::Bf16, 21, 256).0,
            quantized(GgmlDType::Q6K, 32, 256).0,
            quantized(GgmlDType::Q6K, 5, 256).0,
            quantized(GgmlDType::Q6K, 16, 256).0,
            quantized(GgmlDType::Q8_0, 16, 256).0,
            quantized(GgmlDType::Q5_0, 16, 256).0,
            quantized(GgmlDType::Q5_0, 16, 256).0,
            matrix(Format::Bf16Fast, 32, 256).0,
            matrix(Format::Bf16Fast, 17, 256).0,
            matrix(Format::F32, 16, 256).0,
        ]
    };
    let stack = PackedMatrix::stack(parts()).unwrap();
    assert_eq!(
        stack.out_features(),
        48 + 21 + (32 + 5) + 16 + 16 + 16 + 16 + (32 + 17) + 16
    );
    // Of `bf16`, and of `Q6_K` in panels, the part behind whole panels; the third begins within one.
    let joined = 1 + usize::from(Isa::detected().has_byte_dot());
    assert_eq!(stack.segments.len(), parts().len() - joined);
    let x = numbers(9 * 256, 2);
    let bias = numbers(stack.out_features(), 4);
    let mut found = vec![0.0; 9 * stack.out_features()];
    stack.matmul(&pool, &x, Some(&bias), &mut found).unwrap();
    let mut first = 0;
    for part in parts() {
        let out = part.out_features();
        let mut expected = vec![0.0; 9 * out];
        part.matmul(&pool, &x, Some(&bias[first..first + out]), &mut expected)
            .unwrap();
        for row in 0..9 {
            let found = &found[row * stack.out_features() + first..][..out];
            assert_eq!(bits(found), bits(&expected[row * out..][..out]));
        }
        let (mut here, mut there) = (vec![0.0; 256], vec![0.0; 256]);
        stack.read_row(first + out - 1, &mut here);
        part.read_row(out - 1, &mut there);
        assert_eq!(bits(&here), bits(&there));
        first += out;
    }
}

#[test]
fn gathered_rows_are_the_weights() {
    let pool = ThreadPool::new(2).unwrap();
    for format in FORMATS {
        let (packed, weights) = matrix(format, 50, 33);
        let ids: Vec<u32> = [0, 49, 16, 17, 3].into_iter().cycle().take(20).collect();
        let mut found = vec![0.0; ids.len() * 33];
        packed.gather(&pool, &ids, &mut found).unwrap();
        for (id, found) in ids.iter().zip(found.chunks_exact(33)) {
            assert_eq!(
                found,
                &weights[*id as usize * 33..][..33],
                "{format:?} row {id}"
            );
        }
    }
    for kind in QUANTIZED {
        let (packed, weights) = quantized(kind, 37, 512);
        let mut found = vec![0.0; 512];
        packed.read_row(36, &mut found);
        assert_eq!(found, weights[36 * 512..], "{kind:?}");
    }
}

#[test]
fn sizes_that_do_not_fit_are_errors() {
    assert!(matches!(
        PackedMatrix::from_f32(&[0.0; 5], 2, 3),
        Err(KernelError::Length { .. })
    ));
    assert!(matches!(
        PackedMatrix::from_f32(&[], 0, 3),
        Err(KernelError::Shape(_))
    ));
    assert!(matches!(
        PackedMatrix::stack(Vec::new()),
        Err(KernelError::Shape(_))
    ));
    let parts = vec![matrix(Format::F32, 2, 3).0, matrix(Format::F32, 2, 4).0];
    assert!(matches!(
        PackedMatrix::stack(parts),
        Err(KernelError::Shape(_))
    ));
}

#[test]
fn unsupported_quantizations_are_named() {
    let zeros = Tensor::zeros((2, 256), candle_core::DType::F32, &Device::Cpu).unwrap();
    let tensor = Arc::new(QTensor::quantize(&zeros, GgmlDType::Q2K).unwrap());
    let error = PackedMatrix::from_quantized(&tensor)
        .err()
        .unwrap()
        .to_string();
    assert!(error.contains("Q2K"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn any_shape_matches_the_reference(
        out in 1usize..80,
        inputs in 1usize..90,
        rows in 1usize..40,
        format in 0usize..3,
        threads in 1usize..4,
    ) {
        let pool = ThreadPool::new(threads).unwrap();
        let (packed, weights) = matrix(FORMATS[format], out, inputs);
        let x = numbers(rows * inputs, 23);
        let mut found = vec![0.0; rows * out];
        packed.matmul(&pool, &x, None, &mut found).unwrap();
        let expected = reference(&x, &weights, None, inputs);
        assert_close(&found, &expected, 2e-6, "random shape");
    }
}
