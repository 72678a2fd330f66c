//! Tests of the scheduler with its prefix cache, over a fake engine that notices every wrong block.

mod actors;
mod bench;
mod fake_engine;
mod simulation;
mod stories;
