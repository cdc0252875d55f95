//! NVML's return codes: the name that `card.json` gives each, and the text of `nvmlErrorString`.

use std::ffi::CStr;

pub use nvml_wrapper_sys::bindings::nvmlReturn_t as Code;

pub const SUCCESS: Code = 0;
pub const UNINITIALIZED: Code = 1;
pub const INVALID_ARGUMENT: Code = 2;
pub const NOT_SUPPORTED: Code = 3;
pub const NOT_FOUND: Code = 6;
pub const INSUFFICIENT_SIZE: Code = 7;
pub const DRIVER_NOT_LOADED: Code = 9;
pub const ARGUMENT_VERSION_MISMATCH: Code = 25;
pub const UNKNOWN: Code = 999;

const CODES: [(Code, &str, &CStr); 32] = [
    (SUCCESS, "success", c"Success"),
    (UNINITIALIZED, "uninitialized", c"Uninitialized"),
    (INVALID_ARGUMENT, "invalid_argument", c"Invalid Argument"),
    (NOT_SUPPORTED, "not_supported", c"Not Supported"),
    (4, "no_permission", c"Insufficient Permissions"),
    (5, "already_initialized", c"Already Initialized"),
    (NOT_FOUND, "not_found", c"Not Found"),
    (INSUFFICIENT_SIZE, "insufficient_size", c"Insufficient Size"),
    (8, "insufficient_power", c"Insufficient External Power"),
    (DRIVER_NOT_LOADED, "driver_not_loaded", c"Driver Not Loaded"),
    (10, "timeout", c"Timeout"),
    (11, "irq_issue", c"Interrupt Request Issue"),
    (12, "library_not_found", c"NVML Shared Library Not Found"),
    (13, "function_not_found", c"Function Not Found"),
    (14, "corrupted_inforom", c"Corrupted infoROM"),
    (15, "gpu_is_lost", c"GPU is lost"),
    (16, "reset_required", c"GPU requires reset"),
    (17, "operating_system", c"The operating system has blocked the request"),
    (18, "lib_rm_version_mismatch", c"Driver/library version mismatch"),
    (19, "in_use", c"In use"),
    (20, "memory", c"Insufficient Memory"),
    (21, "no_data", c"No data"),
    (22, "vgpu_ecc_not_supported", c"vGPU ECC not supported"),
    (23, "insufficient_resources", c"Insufficient resources"),
    (24, "freq_not_supported", c"Frequency not supported"),
    (ARGUMENT_VERSION_MISMATCH, "argument_version_mismatch", c"Argument version mismatch"),
    (26, "deprecated", c"Deprecated"),
    (27, "not_ready", c"Not ready"),
    (28, "gpu_not_found", c"GPU not found"),
    (29, "invalid_state", c"Invalid state"),
    (30, "reset_type_not_supported", c"Reset type not supported"),
    (UNKNOWN, "unknown", c"Unknown Error"),
];

/// Returns the code that has this name in `card.json`.
pub fn named(name: &str) -> Option<Code> {
    CODES.iter().find(|(_, known, _)| *known == name).map(|(code, ..)| *code)
}

/// Returns the text of `nvmlErrorString` for a code.
pub fn text(code: Code) -> &'static CStr {
    CODES.iter().find(|(known, ..)| *known == code).map_or(c"Unknown Error", |(.., text)| text)
}
