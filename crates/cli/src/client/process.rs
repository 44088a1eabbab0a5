//! A process's input and output over a WebSocket. SOURCE: `atoll_wire::rest::stream`.

use atoll_wire::rest::{StreamChannel, StreamMessage};
use bytes::{BufMut, Bytes, BytesMut};
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::http::header::AUTHORIZATION;
use tokio_tungstenite::tungstenite::{Error, Message};

use super::{Client, ClientError};
use crate::instance::{Address, Instance};

/// Either kind of socket.
pub(crate) trait Transport: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Transport for T {}

type Socket = WebSocketStream<Box<dyn Transport>>;

/// What comes from a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ProcessEvent {
    /// Bytes of standard output.
    Stdout(Bytes),
    /// Bytes of standard error.
    Stderr(Bytes),
    /// Anything that is not output.
    Message(StreamMessage),
}

/// Both directions of a process stream.
pub(crate) struct ProcessConnection {
    /// To the process.
    pub(crate) input: ProcessInput,
    /// From the process.
    pub(crate) output: ProcessOutput,
}

/// The direction to the process.
pub(crate) struct ProcessInput {
    sink: SplitSink<Socket, Message>,
    instance: Instance,
}

/// The direction from the process.
pub(crate) struct ProcessOutput {
    stream: SplitStream<Socket>,
    instance: Instance,
}

impl Client {
    /// Opens a process stream: `path` with the first message.
    pub(crate) async fn process(
        &self,
        path: &str,
        first: &(impl Serialize + Sync),
    ) -> Result<ProcessConnection, ClientError> {
        let instance = self.instance().clone();
        let transport = connect(&instance).await?;
        let url = format!("{}{path}", instance.address.base_url().replacen("http", "ws", 1));
        let mut request =
            url.into_client_request().map_err(|error| ClientError::broken(&instance, &error))?;
        let bearer = HeaderValue::from_str(&format!("Bearer {}", instance.token))
            .map_err(|error| ClientError::setup(&error))?;
        request.headers_mut().insert(AUTHORIZATION, bearer);
        let (mut socket, _) = tokio_tungstenite::client_async(request, transport)
            .await
            .map_err(|error| from_websocket(&instance, error))?;
        let text = serde_json::to_string(first).map_err(|error| ClientError::setup(&error))?;
        socket.send(Message::text(text)).await.map_err(|error| from_websocket(&instance, error))?;
        let (sink, stream) = socket.split();
        Ok(ProcessConnection {
            input: ProcessInput { sink, instance: instance.clone() },
            output: ProcessOutput { stream, instance },
        })
    }
}

impl ProcessInput {
    /// Sends bytes to the process's standard input; returns once they are on their way.
    pub(crate) async fn stdin(&mut self, bytes: &[u8]) -> Result<(), ClientError> {
        let mut message = BytesMut::with_capacity(bytes.len() + 1);
        message.put_u8(StreamChannel::Stdin as u8);
        message.put_slice(bytes);
        self.send(Message::Binary(message.freeze())).await
    }

    /// Sends anything else.
    pub(crate) async fn message(&mut self, message: &StreamMessage) -> Result<(), ClientError> {
        let text = serde_json::to_string(message).map_err(|error| ClientError::setup(&error))?;
        self.send(Message::text(text)).await
    }

    async fn send(&mut self, message: Message) -> Result<(), ClientError> {
        self.sink.send(message).await.map_err(|error| from_websocket(&self.instance, error))
    }
}

impl ProcessOutput {
    /// What comes next; `None` when the server has closed the stream.
    pub(crate) async fn next(&mut self) -> Result<Option<ProcessEvent>, ClientError> {
        while let Some(message) = self.stream.next().await {
            match message.map_err(|error| from_websocket(&self.instance, error))? {
                Message::Binary(bytes) => {
                    if let Some(event) = output_event(bytes) {
                        return Ok(Some(event));
                    }
                }
                Message::Text(text) => {
                    let message = serde_json::from_str(text.as_str())
                        .map_err(|error| ClientError::answer(&error))?;
                    return Ok(Some(ProcessEvent::Message(message)));
                }
                Message::Close(_) => return Ok(None),
                Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {}
            }
        }
        Ok(None)
    }
}

/// Output of a channel that is known; a newer server may have more.
fn output_event(mut bytes: Bytes) -> Option<ProcessEvent> {
    if bytes.is_empty() {
        return None;
    }
    let channel = bytes.split_to(1)[0];
    if channel == StreamChannel::Stdout as u8 {
        Some(ProcessEvent::Stdout(bytes))
    } else if channel == StreamChannel::Stderr as u8 {
        Some(ProcessEvent::Stderr(bytes))
    } else {
        None
    }
}

async fn connect(instance: &Instance) -> Result<Box<dyn Transport>, ClientError> {
    let unreachable = |error| ClientError::unreachable(instance, &error);
    match &instance.address {
        Address::Tcp(authority) => {
            let stream = TcpStream::connect(authority).await.map_err(unreachable)?;
            stream.set_nodelay(true).map_err(|error| ClientError::broken(instance, &error))?;
            Ok(Box::new(stream))
        }
        Address::Unix(path) => Ok(Box::new(UnixStream::connect(path).await.map_err(unreachable)?)),
    }
}

fn from_websocket(instance: &Instance, error: Error) -> ClientError {
    match error {
        Error::Http(response) => {
            let status = response.status().as_u16();
            ClientError::refused(status, response.body().as_deref().unwrap_or_default())
        }
        other => ClientError::broken(instance, &other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_is_told_apart_by_its_first_byte() {
        let event = |bytes: &'static [u8]| output_event(Bytes::from_static(bytes));
        assert_eq!(event(b"\x01out"), Some(ProcessEvent::Stdout(Bytes::from_static(b"out"))));
        assert_eq!(event(b"\x02"), Some(ProcessEvent::Stderr(Bytes::new())));
        assert_eq!(event(b"\x09new"), None);
        assert_eq!(event(b""), None);
    }
}
