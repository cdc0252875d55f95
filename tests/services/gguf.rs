//! A language model of a few MB, for tests: it has llama's architecture, random weights and a token
//! for each byte, and what it says means nothing.

use std::fs;
use std::path::Path;

const WIDTH: u64 = 256;
const INNER: u64 = 1024;
const HEADS: u32 = 4;
const LAYERS: u32 = 4;
/// Length, in tokens, of the context that the model claims to be trained for.
const CONTEXT: u32 = 32768;

/// GGUF's number for the type of unsigned 32-bit values.
const U32: u32 = 4;
const I32: u32 = 5;
const F32: u32 = 6;
const TEXT: u32 = 8;
const LIST: u32 = 9;

/// Alignment of data in the file, in bytes.
const ALIGNMENT: usize = 32;

/// A GGUF file, or a part of it, that is being written.
#[derive(Default)]
struct Writer {
    bytes: Vec<u8>,
    entries: u64,
}

impl Writer {
    fn u32(&mut self, number: u32) {
        self.bytes.extend(number.to_le_bytes());
    }

    fn u64(&mut self, number: u64) {
        self.bytes.extend(number.to_le_bytes());
    }

    fn text(&mut self, text: &str) {
        self.u64(text.len() as u64);
        self.bytes.extend(text.as_bytes());
    }

    fn key(&mut self, key: &str, of_type: u32) {
        self.entries += 1;
        self.text(key);
        self.u32(of_type);
    }

    fn number(&mut self, key: &str, number: u32) {
        self.key(key, U32);
        self.u32(number);
    }

    fn list(&mut self, key: &str, of_type: u32, count: usize) {
        self.key(key, LIST);
        self.u32(of_type);
        self.u64(count as u64);
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGNMENT), 0);
    }
}

/// Writes the model to a GGUF file.
pub fn write(path: &Path) {
    let mut about = Writer::default();
    for (key, text) in [("general.architecture", "llama"), ("tokenizer.ggml.model", "llama")] {
        about.key(key, TEXT);
        about.text(text);
    }
    for (key, number) in [
        ("llama.context_length", CONTEXT),
        ("llama.embedding_length", WIDTH as u32),
        ("llama.feed_forward_length", INNER as u32),
        ("llama.block_count", LAYERS),
        ("llama.attention.head_count", HEADS),
        ("tokenizer.ggml.unknown_token_id", 0),
        ("tokenizer.ggml.bos_token_id", 1),
        ("tokenizer.ggml.eos_token_id", 2),
    ] {
        about.number(key, number);
    }
    about.key("llama.attention.layer_norm_rms_epsilon", F32);
    about.bytes.extend(1e-5f32.to_le_bytes());
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(str::to_owned).to_vec();
    tokens.extend((0..=255u8).map(|byte| format!("<0x{byte:02X}>")));
    about.list("tokenizer.ggml.tokens", TEXT, tokens.len());
    tokens.iter().for_each(|token| about.text(token));
    about.list("tokenizer.ggml.scores", F32, tokens.len());
    tokens.iter().for_each(|_| about.u32(0));
    about.list("tokenizer.ggml.token_type", I32, tokens.len());
    // The types are unknown, control, control, and bytes.
    let types = [2, 3, 3].into_iter().chain([6; 256]);
    types.for_each(|of_type| about.u32(of_type));

    let tensors = tensors(tokens.len() as u64);
    let mut file = Writer::default();
    file.bytes.extend(b"GGUF");
    file.u32(3);
    file.u64(tensors.len() as u64);
    file.u64(about.entries);
    file.bytes.extend(about.bytes);
    let mut offset = 0;
    for (name, shape) in &tensors {
        file.text(name);
        file.u32(shape.len() as u32);
        shape.iter().for_each(|size| file.u64(*size));
        // The weights are 32-bit floats.
        file.u32(0);
        file.u64(offset as u64);
        offset += (shape.iter().product::<u64>() as usize * 4).next_multiple_of(ALIGNMENT);
    }
    file.align();
    let mut seed = 1u32;
    for (name, shape) in &tensors {
        for _ in 0..shape.iter().product() {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let random = (f64::from(seed) / f64::from(u32::MAX) - 0.5) as f32 / 8.0;
            let weight = if name.contains("norm") { 1.0 } else { random };
            file.bytes.extend(weight.to_le_bytes());
        }
        file.align();
    }
    fs::write(path, file.bytes).unwrap();
}

/// Returns the names and shapes of the model's weights.
fn tensors(tokens: u64) -> Vec<(String, Vec<u64>)> {
    let mut tensors = vec![
        ("token_embd.weight".to_owned(), vec![WIDTH, tokens]),
        ("output_norm.weight".to_owned(), vec![WIDTH]),
        ("output.weight".to_owned(), vec![WIDTH, tokens]),
    ];
    for layer in 0..LAYERS {
        let of_layer = [
            ("attn_norm", vec![WIDTH]),
            ("attn_q", vec![WIDTH, WIDTH]),
            ("attn_k", vec![WIDTH, WIDTH]),
            ("attn_v", vec![WIDTH, WIDTH]),
            ("attn_output", vec![WIDTH, WIDTH]),
            ("ffn_norm", vec![WIDTH]),
            ("ffn_gate", vec![WIDTH, INNER]),
            ("ffn_up", vec![WIDTH, INNER]),
            ("ffn_down", vec![INNER, WIDTH]),
        ];
        tensors.extend(of_layer.map(|(name, shape)| (format!("blk.{layer}.{name}.weight"), shape)));
    }
    tensors
}
