"""A policy for a bus in memory: the text of a policy file, judged as ipcbusd does (PROTOCOL.md section 13)."""

from __future__ import annotations

import grp
import pwd
from dataclasses import replace

from ipcbus.broker import Peer
from ipcbus.broker.rights import subject_of
from ipcbus.policy import EVERYTHING, Action, Policy, Redaction, Rule, Subject, parse

_WHERE = "the default of a FakeBus (what no rule allows is denied, but to connect)"


def policy_of(text: str | None) -> tuple[Policy, Redaction]:
    """What the rules of *text* mean, and which topics it hides from monitors. Raises TypeError, or ValueError with all that is wrong."""
    if text is None:
        return EVERYTHING, Redaction()
    if not isinstance(text, str):
        raise TypeError(f"policy={text!r:.50}: it is the text of a policy file, or None")
    read = parse(text, "the policy", users=_uid, groups=_gid)
    if read.errors or read.warnings:
        raise ValueError("; ".join((*read.errors, *read.warnings)))
    connect = Rule(True, frozenset({Action.CONNECT}), where=_WHERE)
    return Policy((*read.rules, connect), default=Rule(False, where=_WHERE)), Redaction(read.redact)


def named_subject_of(peer: Peer) -> Subject:
    """Whom the policy judges, with the names that this machine has for them."""
    subject = subject_of(peer)
    return replace(subject, user=_user(subject.uid), group=_group(subject.gid))


def _user(uid: int | None) -> str:
    try:
        return "" if uid is None else pwd.getpwuid(uid).pw_name
    except KeyError:
        return ""


def _group(gid: int | None) -> str:
    try:
        return "" if gid is None else grp.getgrgid(gid).gr_name
    except KeyError:
        return ""


def _uid(name: str) -> int | None:
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        return None


def _gid(name: str) -> int | None:
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        return None
