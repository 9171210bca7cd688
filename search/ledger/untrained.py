"""The result of a study's untrained checkpoint, a file in the study's folder."""

from fgseg.checkpoints.untrained_result import UntrainedResult, read_untrained
from fgseg.storage.store import open_store
from search.ledger.study_metadata import StudyMetadata
from search.study.location import StudyLocation


def untrained_of(location: StudyLocation, metadata: StudyMetadata) -> UntrainedResult | None:
    """Return the result of a study's untrained checkpoint; None if it is missing, damaged or of other data."""
    result = read_untrained(open_store(location.folder))
    return result if result is not None and result.data == metadata.identity.get("data") else None
