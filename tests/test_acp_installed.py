"""Are the stories with the Agent Client Protocol told here? They lie in tests/acp, and are left out where the library is not there."""

import sys
from importlib import metadata

import pytest


def test_agent_client_protocol_is_installed_so_the_stories_of_tests_acp_are_run():
    if not [*metadata.distributions(name="agent-client-protocol")]:
        why = "; ci: may be skipped: 0.12.1 is not for Python 3.15" if sys.version_info >= (3, 15) else ""
        pytest.skip(
            f"agent-client-protocol is not installed here: the stories of tests/acp are left out{why}"
        )
