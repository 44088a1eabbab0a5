//! `atoll login` and `atoll logout`: credentials for registries, kept by the server.

use std::io::Read;

use anyhow::Context;
use atoll_wire::rest::{Deleted, RegistryCredentials};
use reqwest::Method;

use super::{Outcome, SUCCESS, connect};
use crate::args::{ConnectionArgs, LoginArgs, LogoutArgs};
use crate::client::{Client, encoded};
use crate::{output, terminal};

/// Longest password or token that is read. Guess: tokens of clouds have a few KiB.
const MAX_PASSWORD_BYTES: u64 = 64 * 1024;

/// Stores credentials.
pub(super) async fn login(args: LoginArgs, connection: &ConnectionArgs) -> Outcome {
    let client = connect(connection)?;
    let username = match args.username {
        Some(username) => username,
        None => terminal::ask("User name: ", "a user name", "--username NAME")?,
    };
    let password = if args.password_stdin {
        let mut text = String::new();
        std::io::stdin()
            .lock()
            .take(MAX_PASSWORD_BYTES)
            .read_to_string(&mut text)
            .context("cannot read the password from standard input")?;
        text.trim_end_matches(['\r', '\n']).to_owned()
    } else {
        terminal::ask_secret("Password: ", "a password", "--password-stdin")?
    };
    anyhow::ensure!(!password.is_empty(), "the password is empty: nothing was stored");
    let request = client
        .request(Method::PUT, &credentials_path(&args.registry))
        .json(&RegistryCredentials { username, password });
    client.send(request).await?;
    output::print(&format!("credentials for {} are stored\n", args.registry))?;
    Ok(SUCCESS)
}

/// Forgets credentials.
pub(super) async fn logout(args: LogoutArgs, connection: &ConnectionArgs) -> Outcome {
    let client: Client = connect(connection)?;
    let request = client.request(Method::DELETE, &credentials_path(&args.registry));
    let _: Deleted = client.json(request).await?;
    output::print(&format!("credentials for {} are forgotten\n", args.registry))?;
    Ok(SUCCESS)
}

fn credentials_path(registry: &str) -> String {
    format!("/api/v1/registries/{}/credentials", encoded(registry))
}
