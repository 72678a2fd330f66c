//! Tests of the scheduler with its prefix cache, over a fake engine that notices every wrong block; and
//! over real ones ([`exactness`]).

mod actors;
mod bench;
mod exactness;
mod fake_engine;
mod simulation;
mod stories;
