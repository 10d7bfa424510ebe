"""GazeQwen as lmms-eval's own classes, which it loads where it is installed: `suites/lmms.py` says what they do."""

from lmms_eval.api.model import lmms
from lmms_eval.api.task import ConfigurableTask

from gazeqwen.suites.lmms import DocumentModel, DocumentTask


class GazeQwen(DocumentModel, lmms):
    """`--model gazeqwen`"""


class StreamGaze(DocumentTask, ConfigurableTask):
    """`--tasks streamgaze`"""
