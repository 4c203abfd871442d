"""The nodes meet before any launcher starts: they compare what each believes, and then watch over each other.

Node 0's launcher listens on the rendezvous port itself, so whoever reaches it has proved name, route and port. Every
other node connects and hands in its account, which is carried unread: what has to agree, whoever starts the run knows.
Node 0 answers "go" to all, or tells all of them every difference. Then the port is handed to torchrun. The connections
stay open as a pulse: a node that is lost is named on all others within seconds, where the ranks' collectives would hang
until their time-out.
"""

from allranks.rendezvous.join import join
from allranks.rendezvous.listen import is_here
from allranks.rendezvous.pairs import Tried, prove_pairs
from allranks.rendezvous.participant import Accounts, Agreement, Participant, differences
from allranks.rendezvous.refusal import tell_all, tell_node_0
from allranks.rendezvous.rendezvous import Rendezvous
from allranks.rendezvous.terms import Terms

__all__ = [
    "Accounts",
    "Agreement",
    "Participant",
    "Rendezvous",
    "Terms",
    "Tried",
    "differences",
    "is_here",
    "join",
    "prove_pairs",
    "tell_all",
    "tell_node_0",
]
