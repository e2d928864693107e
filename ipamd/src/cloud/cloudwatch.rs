//! One call to CloudWatch: `PutMetricData` of its query API (version 2010-08-01), signed with Signature Version 4.
//!
//! The SDK of CloudWatch would bring other features below EC2's; a form with a signature is all that the call is.

use std::error::Error as _;
use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use aws_credential_types::provider::{ProvideCredentials as _, SharedCredentialsProvider};
use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings, sign};
use aws_sigv4::sign::v4;
use aws_smithy_http_client::Connector;
use aws_smithy_runtime_api::client::http::HttpConnector as _;
use aws_smithy_runtime_api::client::orchestrator::HttpRequest;
use aws_smithy_types::body::SdkBody;
use aws_smithy_types::byte_stream::ByteStream;
use hyper::http::{Request, header};
use types::Moment;

use super::ec2::never_sent;
use super::{CloudError, CloudErrorKind, Effect, http, time};
use crate::config::Config;

/// The namespace of the figures, which is the Go version's.
pub(crate) const NAMESPACE: &str = "Kubernetes";
/// The dimension that says which cluster.
const DIMENSION: &str = "CLUSTER_ID";
/// Data of one request, as the Go version sends them; CloudWatch takes a thousand.
pub(crate) const BATCH: usize = 20;
const CALL: &str = "PutMetricData";
const SERVICE: &str = "monitoring";
const FORM: &str = "application/x-www-form-urlencoded; charset=utf-8";
/// Credentials that end sooner are asked for again.
const NEARLY_OVER: Duration = Duration::from_secs(300);
/// The longest answer that is read.
const ANSWER_MAX: usize = 64 * 1024;

/// A figure at a time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct MetricPoint {
    /// Its name.
    pub(crate) name: &'static str,
    /// When.
    pub(crate) at: Moment,
    /// How much.
    pub(crate) value: f64,
}

/// A client of CloudWatch.
#[derive(Debug)]
pub(crate) struct CloudWatch {
    connector: Connector,
    provider: Option<SharedCredentialsProvider>,
    /// Those that were used last.
    credentials: Option<Credentials>,
    region: String,
    url: String,
    patience: Duration,
}

impl CloudWatch {
    /// A client for the region or, in its place, a URL; asks nothing yet.
    pub(crate) async fn connect(config: &Config, region: &str, endpoint: Option<&str>) -> Self {
        Self::with_credentials(config, region, endpoint, None).await
    }

    /// As [`CloudWatch::connect`], with these credentials in place of the usual ones.
    pub(super) async fn with_credentials(
        config: &Config,
        region: &str,
        endpoint: Option<&str>,
        credentials: Option<Credentials>,
    ) -> Self {
        let patience = config.http_timeout;
        let url =
            endpoint.map_or_else(|| format!("https://{SERVICE}.{region}.{}", domain(region)), str::to_owned);
        Self {
            connector: http::connector(config),
            provider: http::shared(config, region, credentials).await.credentials_provider(),
            credentials: None,
            region: region.to_owned(),
            url: format!("{}/", url.trim_end_matches('/')),
            patience,
        }
    }

    /// Tells the figures of a cluster, [`BATCH`] of them at most.
    ///
    /// # Errors
    /// [`CloudErrorKind::Unclear`] when they may have arrived: told again, they would count twice.
    pub(crate) async fn put(&mut self, cluster: &str, points: &[MetricPoint]) -> Result<(), CloudError> {
        http::roots_for(Some(&self.url), CALL)?;
        let credentials = self.credentials().await?;
        let request = self.request(form(cluster, points), &credentials)?;
        let answer = tokio::time::timeout(self.patience, self.ask(request)).await;
        let answer = answer.unwrap_or_else(|_elapsed| {
            Err(CloudError::new(CloudErrorKind::Unclear, CALL, format!("no answer for {:?}", self.patience)))
        });
        if answer.as_ref().is_err_and(|error| error.kind() == CloudErrorKind::Denied) {
            self.credentials = None;
        }
        answer
    }

    async fn credentials(&mut self) -> Result<Credentials, CloudError> {
        let lasts = |credentials: &Credentials| {
            let left =
                credentials.expiry().map(|end| end.duration_since(SystemTime::now()).unwrap_or_default());
            left.is_some_and(|left| left > NEARLY_OVER)
        };
        if let Some(credentials) = self.credentials.take_if(|credentials| lasts(credentials)) {
            return Ok(self.credentials.insert(credentials).clone());
        }
        let none = || CloudError::new(CloudErrorKind::Denied, CALL, "there are no credentials");
        let provider = self.provider.as_ref().ok_or_else(none)?;
        let found = provider.provide_credentials().await.map_err(|error| none().caused_by(error))?;
        Ok(self.credentials.insert(found).clone())
    }

    fn request(&self, form: String, credentials: &Credentials) -> Result<HttpRequest, CloudError> {
        let other = |what: &str| CloudError::new(CloudErrorKind::Other, CALL, what.to_owned());
        let identity = credentials.clone().into();
        let parameters = v4::SigningParams::builder()
            .identity(&identity)
            .region(&self.region)
            .name(SERVICE)
            .time(SystemTime::now())
            .settings(SigningSettings::default())
            .build()
            .map_err(|error| other("the request cannot be signed").caused_by(error))?;
        let content = [(header::CONTENT_TYPE.as_str(), FORM)];
        let body = SignableBody::Bytes(form.as_bytes());
        let signable = SignableRequest::new("POST", &self.url, content.into_iter(), body);
        let signed = signable.and_then(|signable| sign(signable, &parameters.into()));
        let (instructions, _) =
            signed.map_err(|error| other("the request cannot be signed").caused_by(error))?.into_parts();
        let request = Request::post(&self.url).header(header::CONTENT_TYPE, FORM);
        let mut request = request
            .body(SdkBody::from(form))
            .map_err(|error| other("the request cannot be made").caused_by(error))?;
        instructions.apply_to_request_http1x(&mut request);
        request.try_into().map_err(|error| other("the request cannot be made").caused_by(error))
    }

    async fn ask(&self, request: HttpRequest) -> Result<(), CloudError> {
        let answer = self.connector.call(request).await.map_err(|error| {
            let sent = !error.source().is_some_and(never_sent);
            let kind = if sent { CloudErrorKind::Unclear } else { CloudErrorKind::Unreachable };
            CloudError::new(kind, CALL, "no answer").caused_by(error)
        })?;
        let status = answer.status();
        if status.is_success() {
            return Ok(());
        }
        let told = text(answer.into_body()).await;
        let (code, message) = (between(&told, "Code"), between(&told, "Message"));
        // An answer that is a refusal has taken nothing.
        Err(CloudError::answered(
            CALL,
            Effect::Reads,
            status.as_u16(),
            code.unwrap_or_default(),
            message.unwrap_or("no message"),
        ))
    }
}

/// What the hosts of a region's partition end in ("AWS service endpoints").
fn domain(region: &str) -> &'static str {
    match region {
        region if region.starts_with("cn-") => "amazonaws.com.cn",
        region if region.starts_with("us-iso-") => "c2s.ic.gov",
        region if region.starts_with("us-isob-") => "sc2s.sgov.gov",
        region if region.starts_with("us-isof-") => "csp.hci.ic.gov",
        region if region.starts_with("eu-isoe-") => "cloud.adc-e.uk",
        region if region.starts_with("eusc-") => "amazonaws.eu",
        _ => "amazonaws.com",
    }
}

fn form(cluster: &str, points: &[MetricPoint]) -> String {
    let mut fields = vec![
        ("Action".to_owned(), CALL.to_owned()),
        ("Version".to_owned(), "2010-08-01".to_owned()),
        ("Namespace".to_owned(), NAMESPACE.to_owned()),
    ];
    for (number, point) in points.iter().enumerate() {
        let of = |field: &str| format!("MetricData.member.{}.{field}", number + 1);
        fields.extend([
            (of("MetricName"), point.name.to_owned()),
            (of("Dimensions.member.1.Name"), DIMENSION.to_owned()),
            (of("Dimensions.member.1.Value"), cluster.to_owned()),
            (of("Timestamp"), time::written(point.at)),
            (of("Value"), point.value.to_string()),
            (of("Unit"), "Count".to_owned()),
        ]);
    }
    let fields = fields.into_iter().map(|(name, value)| format!("{name}={}", encoded(&value)));
    fields.collect::<Vec<_>>().join("&")
}

/// As RFC 3986 has it: everything but its unreserved characters.
fn encoded(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(byte.into()),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// The begin of a body, as far as it can be read.
async fn text(body: SdkBody) -> String {
    let (mut stream, mut bytes) = (ByteStream::new(body), Vec::new());
    while let Some(Ok(part)) = stream.next().await
        && bytes.len() < ANSWER_MAX
    {
        bytes.extend_from_slice(&part);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// What stands in the first element of this name.
fn between<'a>(xml: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = xml.split_once(&format!("<{name}>"))?;
    rest.split_once(&format!("</{name}>")).map(|(inside, _)| inside)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_the_form_of_the_query_api() {
        let point = |name, value| MetricPoint { name, at: Moment(951_827_696_000), value };
        let form = form("a b&c", &[point("addReqCount", 3.0), point("awsAPILatency", 0.25)]);

        assert_eq!(
            form,
            "Action=PutMetricData&Version=2010-08-01&Namespace=Kubernetes\
             &MetricData.member.1.MetricName=addReqCount&MetricData.member.1.Dimensions.member.1.Name=CLUSTER_ID\
             &MetricData.member.1.Dimensions.member.1.Value=a%20b%26c&MetricData.member.1.Timestamp=2000-02-29T12%3A34%3A56Z\
             &MetricData.member.1.Value=3&MetricData.member.1.Unit=Count\
             &MetricData.member.2.MetricName=awsAPILatency&MetricData.member.2.Dimensions.member.1.Name=CLUSTER_ID\
             &MetricData.member.2.Dimensions.member.1.Value=a%20b%26c&MetricData.member.2.Timestamp=2000-02-29T12%3A34%3A56Z\
             &MetricData.member.2.Value=0.25&MetricData.member.2.Unit=Count"
        );
    }

    #[test]
    fn hosts_are_those_of_the_regions_partition() {
        assert_eq!(domain("eu-west-1"), "amazonaws.com");
        assert_eq!(domain("us-gov-west-1"), "amazonaws.com");
        assert_eq!(domain("cn-north-1"), "amazonaws.com.cn");
        assert_eq!(domain("us-isob-east-1"), "sc2s.sgov.gov");
    }

    #[test]
    fn a_refusal_is_read_from_its_document() {
        let xml = "<ErrorResponse><Error><Type>Sender</Type><Code>Throttling</Code><Message>Rate exceeded</Message></Error></ErrorResponse>";

        assert_eq!(
            (between(xml, "Code"), between(xml, "Message")),
            (Some("Throttling"), Some("Rate exceeded"))
        );
        assert_eq!(between("<Code>", "Code"), None);
    }
}
