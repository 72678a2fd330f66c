//! Scheduler, prefix cache, streamer and model manager.

pub mod messages;
pub mod model_manager;
pub mod prefix_cache;
pub mod scheduler;
pub mod streamer;
