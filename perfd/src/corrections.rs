//! `POST /v1/usage/corrections`: a row of the bill was wrong.

use axum::Json;
use libsnap::error::{Error, Kind, Result};
use libsnap::store::{Store, now_unix_ms};
use nodekit::reply::{Reply, on_own_thread};
use std::sync::mpsc;
use tokio::sync::oneshot;
use usage::correct::Asked;
use usage::record::Correction;

/// To be written down, and who is told once it stands.
pub type Pending = (Correction, oneshot::Sender<()>);

/// To the thread that meters: nobody else writes the ledger.
#[derive(Clone, Debug)]
pub struct Corrections(mpsc::SyncSender<Pending>);

pub fn channel() -> (Corrections, mpsc::Receiver<Pending>) {
    let (sender, receiver) = mpsc::sync_channel(16);
    (Corrections(sender), receiver)
}

pub async fn post(store: Store, Corrections(to): Corrections, asked: Asked) -> Reply<Correction> {
    let (usage, now) = (store.usage_dir(), now_unix_ms()?);
    let of = on_own_thread(move || asked.plan(&usage, now)).await?;
    let (done, written) = oneshot::channel();
    let busy = || Error::new(Kind::Unavailable, "cannot write the correction down").fix("try again");
    to.try_send((of.clone(), done)).map_err(|_| busy())?;
    // Within a second; never where the ledger cannot be written.
    let written: Result<()> = written
        .await
        .map_err(|_| busy().because("the ledger cannot be written"));
    written?;
    Ok(Json(of))
}
