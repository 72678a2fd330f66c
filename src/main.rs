//! The process: does what the command line asks; a server is stopped by a signal.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::signal::unix::{SignalKind, signal};
use trunkline::actors::model_manager::LoadedFacts;
use trunkline::bench;
use trunkline::cli::{self, Invocation};
use trunkline::config::{ConfigError, Loaded};
use trunkline::server::{self, RunningServer, StartError, Stopper};
use trunkline::telemetry::{self, LogFormat};

/// Exit code for a wrong command line or configuration.
const USAGE: u8 = 2;
/// Exit code after a second signal: 128 + SIGINT.
const INTERRUPTED: i32 = 130;

fn main() -> ExitCode {
    match cli::read(std::env::args_os(), std::env::vars_os()) {
        Ok(Invocation::Serve(loaded)) => serve_until_stopped(*loaded),
        Ok(Invocation::Bench(arguments)) => measure(&arguments),
        Ok(Invocation::Quantize(arguments)) => write_quantized(&arguments),
        // Also --help and --version: clap knows which go to stdout and end well.
        Err(ConfigError::Usage(usage)) => usage.exit(),
        Err(error) => fail(&error, USAGE),
    }
}

fn serve_until_stopped(loaded: Loaded) -> ExitCode {
    if let Err(error) = telemetry::init_logging(&loaded.config.log_level, loaded.config.log_format)
    {
        return fail(&error, USAGE);
    }
    tell_about(&loaded);
    match serve(loaded) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error, 1),
    }
}

fn measure(arguments: &bench::Arguments) -> ExitCode {
    if let Err(error) = telemetry::init_logging("warn", LogFormat::Text) {
        return fail(&error, USAGE);
    }
    match bench::run(arguments) {
        Ok(bench::Verdict::Clean) => ExitCode::SUCCESS,
        Ok(bench::Verdict::Failed) => ExitCode::FAILURE,
        Err(error) => fail(&error, 1),
    }
}

fn write_quantized(arguments: &cli::quantize::Arguments) -> ExitCode {
    match cli::quantize::run(arguments) {
        Ok(report) => {
            for warning in &report.warnings {
                eprintln!("trunkline: note: {warning}");
            }
            println!("{report}");
            ExitCode::SUCCESS
        }
        Err(error) => fail(&error, 1),
    }
}

fn fail(error: &dyn std::fmt::Display, code: u8) -> ExitCode {
    eprintln!("trunkline: {error}");
    ExitCode::from(code)
}

fn tell_about(loaded: &Loaded) {
    if let Some(file) = &loaded.file {
        tracing::info!(file = %file.display(), "configuration file read");
    }
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
}

fn serve(loaded: Loaded) -> Result<(), StartError> {
    let starting = server::start(loaded.config)?;
    let stopped_early = stop_on_signals(starting.stopper())?;
    match starting.wait_ready() {
        Ok((running, facts)) => {
            println!("{}", ready_line(&running, &facts));
            running.wait();
            Ok(())
        }
        // Stopped by a signal before the model was there: nothing went wrong.
        Err(_) if stopped_early.load(Ordering::Acquire) => Ok(()),
        Err(error) => Err(error),
    }
}

fn ready_line(running: &RunningServer, facts: &LoadedFacts) -> String {
    format!(
        "Trunkline is ready: {}  model {}  device {}  {} KV blocks hold {} tokens of context",
        running.url(),
        facts.model,
        facts.device,
        facts.kv_blocks,
        facts.kv_tokens(),
    )
}

/// Drains the server on the first SIGTERM or SIGINT, and ends the process on the second. The flag tells
/// that the first has come.
fn stop_on_signals(stopper: Stopper) -> Result<Arc<AtomicBool>, StartError> {
    let failed = |error: std::io::Error| StartError::Thread(error.to_string());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .map_err(failed)?;
    let (mut terminate, mut interrupt) = {
        let _guard = runtime.enter();
        (
            signal(SignalKind::terminate()).map_err(failed)?,
            signal(SignalKind::interrupt()).map_err(failed)?,
        )
    };
    let came = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&came);
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            runtime.block_on(async move {
                for number in 1.. {
                    tokio::select! {
                        _ = terminate.recv() => {}
                        _ = interrupt.recv() => {}
                    }
                    if number > 1 {
                        std::process::exit(INTERRUPTED);
                    }
                    flag.store(true, Ordering::Release);
                    stopper.drain();
                }
            });
        })
        .map_err(failed)?;
    Ok(came)
}
