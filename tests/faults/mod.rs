//! The fault table (`FAULTS.md`): each file bears the numbers of its rows, and each test is named after its row and says
//! what gpuctl promises there.

mod backends;
mod history_check;
mod lock_work;
mod row_01_02_14_lock_holder;
mod row_01_05_lock_killed;
mod row_03_22_lock_history;
mod row_03_lock_contention;
mod row_04_lock_handover;
mod row_05_06_07_08_lock_waiting;
mod row_09_10_12_13_lock_legacy;
mod row_11_22_23_lock_lost;
mod row_15_16_18_19_21_lock_server;
mod row_17_24_lock_network;
mod row_20_lock_access;
mod row_25_26_27_lock_file;
mod row_27_28_29_start;
mod row_30_31_32_stop;
mod row_33_34_ownership;
mod row_35_36_37_docker;
mod row_38_killed;
mod row_39_40_health;
mod row_41_nvml;
mod row_42_memory;
mod row_43_output;
mod row_44_config_fuzz;
mod row_45_state_dir;
mod row_46_two_at_once;
mod row_47_50_canary_owed;
mod row_47_canary_downtime;
mod row_47_canary_killed;
mod row_47_canary_stopped;
mod row_48_canary_rejected;
mod row_49_canary_limits;
mod row_51_run_killed;
mod row_66_68_70_machines_lock;
