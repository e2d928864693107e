//! The HTTP side: one small server per listener, each with a thread and a runtime of its own.
//!
//! A listener is made where it shall be heard, for example inside a node's network namespace, and keeps belonging there
//! whichever thread serves it.

use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::connect_info::{ConnectInfo, Connected};
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::Response;
use axum::serve::IncomingStream;
use tokio::sync::oneshot;
use types::InstanceId;

use super::api::{Request, Share, perform};
use super::error::ApiError;
use super::faults::{Call, Outcome, Verdict};
use super::query::{Action, Params};
use super::{Ec2, xml};

/// The largest form that is read, in bytes.
const FORM_BYTES_MAX: usize = 1 << 20;

/// A running server; it ends, with all its connections, when this is dropped.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic in the server has been printed by the thread itself.
            drop(thread.join());
        }
    }
}

/// Serves the EC2 API; calls are recorded as made by `caller`.
///
/// # Errors
/// If the runtime or its thread cannot be made.
pub fn serve(listener: TcpListener, ec2: Ec2, caller: Option<InstanceId>) -> io::Result<Server> {
    let desk = Arc::new(Desk { ec2, caller });
    let router = Router::new().fallback(answer).layer(DefaultBodyLimit::max(FORM_BYTES_MAX)).with_state(desk);
    spawn(listener, router)
}

/// Serves a router whose handlers may ask for their connection's [`Line`].
pub fn spawn(listener: TcpListener, router: Router) -> io::Result<Server> {
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (stop, stopped) = oneshot::channel::<()>();
    let serve = async move {
        let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { return };
        let service = router.into_make_service_with_connect_info::<Line>();
        tokio::select! {
            _never = axum::serve(listener, service) => {}
            _dropped = stopped => {}
        }
    };
    let thread =
        thread::Builder::new().name(format!("http {address}")).spawn(move || runtime.block_on(serve))?;
    Ok(Server { address, stop: Some(stop), thread: Some(thread) })
}

/// A connection that a handler can close under the answer.
#[derive(Debug, Clone)]
pub struct Line(Option<Arc<TcpStream>>);

impl Connected<IncomingStream<'_, tokio::net::TcpListener>> for Line {
    fn connect_info(stream: IncomingStream<'_, tokio::net::TcpListener>) -> Self {
        let copy = stream.io().as_fd().try_clone_to_owned();
        Self(copy.ok().map(|fd| Arc::new(TcpStream::from(fd))))
    }
}

impl Line {
    /// Closes the connection; the answer that is still to be given goes nowhere.
    pub fn cut(&self) -> Response {
        // A connection that is closed already is as good.
        let _closed = self.0.as_ref().is_some_and(|stream| stream.shutdown(Shutdown::Both).is_ok());
        Response::new(Body::empty())
    }
}

struct Desk {
    ec2: Ec2,
    caller: Option<InstanceId>,
}

async fn answer(
    State(desk): State<Arc<Desk>>,
    ConnectInfo(line): ConnectInfo<Line>,
    headers: HeaderMap,
    form: Bytes,
) -> Response {
    let parsed = Params::parse(&form);
    let name = parsed.as_ref().ok().and_then(|params| params.get("Action")).unwrap_or_default().to_owned();
    let (outcome, response) = match parsed.and_then(|params| Ok((action_of(&params, &headers)?, params))) {
        Ok((action, params)) => desk.treat(action, &params, &line).await,
        Err(error) => refused(&error, &desk.request_id()),
    };
    let call = Call { at: desk.ec2.now(), action: name, caller: desk.caller.clone(), outcome };
    desk.ec2.faults().record(call);
    response
}

/// The action, of a request that carries a signature; which one is not looked at.
fn action_of(params: &Params, headers: &HeaderMap) -> Result<Action, ApiError> {
    if !headers.contains_key(header::AUTHORIZATION) {
        return Err(ApiError::unsigned());
    }
    Action::of(params.need("Action")?)
}

impl Desk {
    async fn treat(&self, action: Action, params: &Params, line: &Line) -> (Outcome, Response) {
        let verdict = self.ec2.faults().meet(action, self.ec2.now());
        match verdict {
            Verdict::Perform => self.perform(action, params, Share::Whole),
            Verdict::PerformHalf => self.perform(action, params, Share::Half),
            Verdict::PerformAfter(delay) => {
                tokio::time::sleep(delay).await;
                self.perform(action, params, Share::Whole)
            }
            Verdict::PerformAndCut => match self.perform(action, params, Share::Whole) {
                (Outcome::Done, _) => (Outcome::Lost, line.cut()),
                (refused, _) => (refused, line.cut()),
            },
            Verdict::Cut => (Outcome::Cut, line.cut()),
            Verdict::Garbage(text) => (Outcome::Garbled, response(StatusCode::OK, text)),
            Verdict::Refuse(error) => refused(&error, &self.request_id()),
        }
    }

    fn perform(&self, action: Action, params: &Params, share: Share) -> (Outcome, Response) {
        let id = self.request_id();
        let result = self.ec2.change(|model, now| perform(model, action, &Request { params, now, share }));
        match result {
            Ok(body) => (Outcome::Done, response(StatusCode::OK, body.response(action.name(), &id))),
            Err(error) => refused(&error, &id),
        }
    }

    /// In the form of a UUID.
    fn request_id(&self) -> String {
        format!("00000000-0000-4000-8000-{:012x}", self.ec2.now().0 & 0xffff_ffff_ffff)
    }
}

fn refused(error: &ApiError, request: &str) -> (Outcome, Response) {
    let status = StatusCode::from_u16(error.http).unwrap_or(StatusCode::BAD_REQUEST);
    (Outcome::Refused(error.code.clone()), response(status, xml::error(error, request)))
}

fn response(status: StatusCode, body: String) -> Response {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    let kind = header::HeaderValue::from_static("text/xml;charset=UTF-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}
