from hypothesis import given
from hypothesis import strategies as st

from kdml_med.keys import LossTerm, NetworkName, split_loss_name

NETWORKS = st.just(NetworkName.TEACHER.value) | st.integers(0, 1000).map(NetworkName.student)
TERMS = st.sampled_from([term.value for term in LossTerm]) | st.from_regex(r"[a-z0-9]+(_[a-z0-9]+)*", fullmatch=True)


@given(NETWORKS, TERMS)
def test_a_loss_name_gives_back_the_network_and_a_term_of_any_number_of_words(network, term):
    assert split_loss_name(f"{network}_{term}") == (network, term)


def test_the_sum_belongs_to_no_network():
    assert split_loss_name(LossTerm.LOSS) == ("", "loss")


def test_every_part_of_the_sum_says_what_scales_it_and_what_it_is_called():
    assert LossTerm.LOSS not in LossTerm.parts()
    for term in LossTerm.parts():
        assert LossTerm(term.value) is term
        assert all((term.weight, term.source, term.words))
