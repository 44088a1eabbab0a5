//! Messages of the domain name system, from both sides hostile: a sandbox's questions and an upstream server's answers.
//!
//! Owns what of them is believed. A question goes on as its name, type and class alone; an answer comes back only when it answers that very
//! question, and without addresses that a sandbox may not be led to.

use std::net::IpAddr;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, RData, Record};

/// Largest datagram that is asked for and sent. SOURCE: DNS flag day 2020: fits every path without fragments.
pub(crate) const DATAGRAM_BYTES: u16 = 1232;
/// Largest datagram to who does not say more. SOURCE: RFC 1035, 2.3.4.
const SMALL_DATAGRAM_BYTES: u16 = 512;
/// Longest chain of records that is passed on (guess: large zones have a few dozen).
const MAX_RECORDS: usize = 512;

/// A question that can be asked on.
#[derive(Debug, Clone)]
pub(crate) struct Question {
    id: u16,
    query: Query,
    recursion_desired: bool,
    checking_disabled: bool,
    /// The sender can take so much in a datagram; with EDNS.
    payload: Option<u16>,
}

/// A message that is no question for us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unfit {
    /// Not even a header, or an answer: silence is the answer.
    Nonsense,
    /// Answered by this code.
    Refused(u16, ResponseCode),
}

/// A message to a sandbox.
#[derive(Debug, Clone)]
pub(crate) struct Reply(Message);

impl Question {
    pub(crate) fn read(bytes: &[u8]) -> Result<Self, Unfit> {
        let &[first, second, flags, ..] = bytes else { return Err(Unfit::Nonsense) };
        // SOURCE: RFC 1035, 4.1.1: an answer has the first bit of the third byte set; to answer one would be a loop.
        if bytes.len() < 12 || flags & 0x80 != 0 {
            return Err(Unfit::Nonsense);
        }
        let id = u16::from_be_bytes([first, second]);
        let refused = |code| Unfit::Refused(id, code);
        let message = Message::from_vec(bytes).map_err(|_| refused(ResponseCode::FormErr))?;
        if message.metadata.op_code != OpCode::Query {
            return Err(refused(ResponseCode::NotImp));
        }
        let [query] = &message.queries[..] else { return Err(refused(ResponseCode::FormErr)) };
        if query.query_class() != DNSClass::IN {
            return Err(refused(ResponseCode::Refused));
        }
        let payload = message.edns.as_ref().map(Edns::max_payload);
        Ok(Self {
            id,
            query: query.clone(),
            recursion_desired: message.metadata.recursion_desired,
            checking_disabled: message.metadata.checking_disabled,
            payload,
        })
    }

    /// The same question as a message of ours.
    pub(crate) fn for_upstream(&self, id: u16) -> Vec<u8> {
        let mut message = Message::new(id, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = self.recursion_desired;
        message.metadata.checking_disabled = self.checking_disabled;
        message.add_query(self.query.clone());
        let mut edns = Edns::new();
        edns.set_max_payload(DATAGRAM_BYTES);
        message.set_edns(edns);
        // Cannot fail: it was read from a message. If it did, nobody would answer nothing.
        message.to_vec().unwrap_or_default()
    }

    /// An answer without records.
    pub(crate) fn reply(&self, code: ResponseCode) -> Reply {
        let mut message = Message::error_msg(self.id, OpCode::Query, code);
        message.metadata.recursion_desired = self.recursion_desired;
        message.metadata.recursion_available = true;
        message.add_query(self.query.clone());
        self.complete(message)
    }

    fn complete(&self, mut message: Message) -> Reply {
        message.edns = self.payload.map(|_| {
            let mut edns = Edns::new();
            edns.set_max_payload(DATAGRAM_BYTES);
            edns
        });
        Reply(message)
    }

    /// What fits a datagram to the sender.
    pub(crate) fn datagram_bytes(&self) -> u16 {
        self.payload.map_or(SMALL_DATAGRAM_BYTES, |payload| {
            payload.clamp(SMALL_DATAGRAM_BYTES, DATAGRAM_BYTES)
        })
    }
}

impl Unfit {
    /// The answer, where one is due.
    pub(crate) fn reply(self) -> Option<Vec<u8>> {
        let Self::Refused(id, code) = self else { return None };
        Message::error_msg(id, OpCode::Query, code).to_vec().ok()
    }
}

/// An upstream server's answer to `question`, asked under `id`, as it goes to the sandbox: `None` when it is not that. `may_be_told` says
/// to which addresses a sandbox may be led: records with others are left out.
pub(crate) fn answer(
    question: &Question,
    id: u16,
    bytes: &[u8],
    may_be_told: &dyn Fn(IpAddr) -> bool,
) -> Option<Reply> {
    let upstream = Message::from_vec(bytes).ok()?;
    let metadata = &upstream.metadata;
    let [asked] = &upstream.queries[..] else { return None };
    let fits = metadata.message_type == MessageType::Response
        && metadata.id == id
        && metadata.op_code == OpCode::Query
        && *asked == question.query;
    if !fits {
        return None;
    }
    let mut message = Message::new(question.id, MessageType::Response, OpCode::Query);
    message.metadata.response_code = metadata.response_code;
    message.metadata.authoritative = metadata.authoritative;
    message.metadata.truncation = metadata.truncation;
    message.metadata.recursion_desired = question.recursion_desired;
    message.metadata.recursion_available = metadata.recursion_available;
    message.metadata.authentic_data = metadata.authentic_data;
    message.metadata.checking_disabled = question.checking_disabled;
    message.add_query(question.query.clone());
    let told = |record: &Record| leads_to(&record.data).iter().all(|address| may_be_told(*address));
    let keep = |records: Vec<Record>| records.into_iter().filter(told).take(MAX_RECORDS);
    message.answers = keep(upstream.answers).collect();
    message.authorities = keep(upstream.authorities).collect();
    message.additionals = keep(upstream.additionals).collect();
    Some(question.complete(message))
}

/// Addresses to which a record leads whoever believes it.
fn leads_to(data: &RData) -> Vec<IpAddr> {
    match data {
        RData::A(address) => vec![IpAddr::V4(address.0)],
        RData::AAAA(address) => vec![IpAddr::V6(address.0)],
        RData::HTTPS(it) => hints(&it.0),
        RData::SVCB(it) => hints(it),
        _ => Vec::new(),
    }
}

fn hints(service: &hickory_proto::rr::rdata::SVCB) -> Vec<IpAddr> {
    use hickory_proto::rr::rdata::svcb::SvcParamValue;
    let mut addresses = Vec::new();
    for (_, value) in &service.svc_params {
        match value {
            SvcParamValue::Ipv4Hint(hint) => {
                addresses.extend(hint.0.iter().map(|it| IpAddr::V4(it.0)));
            }
            SvcParamValue::Ipv6Hint(hint) => {
                addresses.extend(hint.0.iter().map(|it| IpAddr::V6(it.0)));
            }
            _ => {}
        }
    }
    addresses
}

impl Reply {
    /// As bytes; where they are limited and do not fit, the sender is told to ask again by TCP.
    pub(crate) fn bytes(&self, limit: Option<u16>) -> Option<Vec<u8>> {
        let bytes = self.0.to_vec().ok()?;
        match limit {
            Some(limit) if bytes.len() > usize::from(limit) => self.0.truncate().to_vec().ok(),
            _ => Some(bytes),
        }
    }

    pub(crate) fn is_truncated(&self) -> bool {
        self.0.metadata.truncation
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use hickory_proto::rr::rdata::{A, CNAME};
    use hickory_proto::rr::{Name, RecordType};

    use super::*;

    fn question() -> Question {
        let mut message = Message::query();
        message.add_query(Query::query(Name::from_ascii("Example.com.").unwrap(), RecordType::A));
        Question::read(&message.to_vec().unwrap()).unwrap()
    }

    fn upstream(question: &Question, id: u16, addresses: &[[u8; 4]]) -> Message {
        let mut message = Message::response(id, OpCode::Query);
        message.add_query(question.query.clone());
        for address in addresses {
            let name = question.query.name().clone();
            message.add_answer(Record::from_rdata(name, 60, RData::A(A(Ipv4Addr::from(*address)))));
        }
        message
    }

    fn public(address: IpAddr) -> bool {
        matches!(address, IpAddr::V4(address) if !address.is_private() && !address.is_loopback())
    }

    #[test]
    fn an_answer_is_the_answer_to_this_question_alone() {
        let question = question();
        let good = upstream(&question, 7, &[[8, 8, 8, 8]]);
        let read = |message: &Message| answer(&question, 7, &message.to_vec().unwrap(), &public);
        assert_eq!(read(&good).unwrap().0.answers.len(), 1);
        assert!(read(&upstream(&question, 8, &[[8, 8, 8, 8]])).is_none(), "another id");
        let mut other = good.clone();
        other.queries = vec![Query::query(Name::from_ascii("evil.com.").unwrap(), RecordType::A)];
        assert!(read(&other).is_none(), "another name");
        let mut echo = good.clone();
        echo.metadata.message_type = MessageType::Query;
        assert!(read(&echo).is_none(), "no answer");
        let mut none = good;
        none.queries.clear();
        assert!(read(&none).is_none(), "no question");
    }

    #[test]
    fn private_addresses_are_not_passed_on_and_the_rest_is() {
        let question = question();
        let mut message = upstream(
            &question,
            7,
            &[[10, 0, 0, 1], [8, 8, 8, 8], [127, 0, 0, 1], [192, 168, 1, 1]],
        );
        let alias = Name::from_ascii("alias.example.").unwrap();
        message.add_answer(Record::from_rdata(alias.clone(), 60, RData::CNAME(CNAME(alias))));
        let reply = answer(&question, 7, &message.to_vec().unwrap(), &public).unwrap();
        let kept: Vec<_> = reply.0.answers.iter().map(|it| it.record_type()).collect();
        assert_eq!(kept, [RecordType::A, RecordType::CNAME]);
        assert_eq!(reply.0.metadata.id, question.id);
    }

    #[test]
    fn what_does_not_fit_a_datagram_is_truncated() {
        let question = question();
        let many: Vec<[u8; 4]> = (0..100).map(|last| [8, 8, 8, last]).collect();
        let message = upstream(&question, 7, &many);
        let reply = answer(&question, 7, &message.to_vec().unwrap(), &public).unwrap();
        assert_eq!(question.datagram_bytes(), 512);
        let short = reply.bytes(Some(512)).unwrap();
        assert!(short.len() <= 512);
        assert!(Message::from_vec(&short).unwrap().metadata.truncation);
        assert!(reply.bytes(None).unwrap().len() > 1000);
    }

    #[test]
    fn what_is_no_question_gets_the_code_for_it_or_nothing() {
        assert_eq!(Question::read(&[]).unwrap_err(), Unfit::Nonsense);
        assert_eq!(Question::read(&[0; 11]).unwrap_err(), Unfit::Nonsense);
        let mut response = Message::response(9, OpCode::Query).to_vec().unwrap();
        assert_eq!(Question::read(&response).unwrap_err(), Unfit::Nonsense);
        response[2] = 0;
        assert_eq!(
            Question::read(&response).unwrap_err(),
            Unfit::Refused(9, ResponseCode::FormErr),
            "no question in it"
        );
        let mut update = Message::query();
        update.metadata.op_code = OpCode::Update;
        let refused = Question::read(&update.to_vec().unwrap()).unwrap_err();
        assert!(matches!(refused, Unfit::Refused(_, ResponseCode::NotImp)), "{refused:?}");
        assert!(refused.reply().is_some() && Unfit::Nonsense.reply().is_none());
    }
}
