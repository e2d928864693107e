//! What pods serve over HTTP, by way of the API server (`pods/NAME:PORT/proxy/PATH`).

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::Arc;

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use serde_json::json;

use super::objects::{Kind, Place};
use super::{Desk, KubeApi, refused};

/// Gets what a pod serves.
pub type Page = Arc<dyn Fn() -> io::Result<String> + Send + Sync>;

/// What pods serve, by namespace, name, port and path.
#[derive(Default)]
pub(super) struct Proxies(BTreeMap<Target, Page>);

impl fmt::Debug for Proxies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// Namespace, name with port, path.
pub(super) type Target = (String, String, String);

/// What a path leads to.
pub(super) fn at(path: &str) -> Option<Target> {
    let rest = path.strip_prefix("/api/v1/namespaces/")?;
    let (namespace, rest) = rest.split_once("/pods/")?;
    let (name, path) = rest.split_once("/proxy/")?;
    Some((namespace.to_owned(), name.to_owned(), path.to_owned()))
}

/// Asks the pod.
pub(super) async fn answer(desk: &Arc<Desk>, target: &Target) -> Response {
    let right = (String::new(), "pods/proxy".to_owned(), "get".to_owned());
    if let Some(refusal) = desk.book().forbids_right(right) {
        return refusal;
    }
    let (namespace, name, _) = target;
    let place = Place::of(Kind::Pod, namespace, name.split(':').next().unwrap_or_default());
    let page = {
        let book = desk.book();
        if !book.objects.contains_key(&place) {
            return refused(StatusCode::NOT_FOUND, "NotFound", name);
        }
        book.proxies.0.get(target).cloned()
    };
    let unreachable = |why: &str| refused(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable", why);
    let Some(page) = page else { return unreachable("nobody listens there") };
    match tokio::task::spawn_blocking(move || page()).await {
        Ok(Ok(text)) => ([(header::CONTENT_TYPE, "text/plain")], text).into_response(),
        Ok(Err(error)) => unreachable(&error.to_string()),
        Err(error) => unreachable(&error.to_string()),
    }
}

impl KubeApi {
    /// Makes a daemon's pod, whose metrics are gotten so.
    pub fn put_agent(&self, name: &str, metrics: Page) {
        let labels = json!({"k8s-app": "aws-node"});
        let metadata = json!({"namespace": "kube-system", "name": name, "uid": name, "labels": labels});
        let pod = json!({"metadata": metadata, "spec": {"containers": [{"name": "aws-node"}]}});
        let target = ("kube-system".to_owned(), format!("{name}:61678"), "metrics".to_owned());
        self.change(|book| drop(book.proxies.0.insert(target, metrics)));
        self.put(Place::of(Kind::Pod, "kube-system", name), pod);
    }

    /// Deletes a daemon's pod.
    pub fn delete_agent(&self, name: &str) {
        self.delete(&Place::of(Kind::Pod, "kube-system", name));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_of_the_proxy_names_pod_port_and_path() {
        let target = at("/api/v1/namespaces/kube-system/pods/aws-node-1:61678/proxy/metrics").unwrap();

        assert_eq!(target, ("kube-system".to_owned(), "aws-node-1:61678".to_owned(), "metrics".to_owned()));
        assert_eq!(at("/api/v1/namespaces/kube-system/pods/aws-node-1"), None);
    }
}
