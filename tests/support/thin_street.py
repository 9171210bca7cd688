"""The default label set, for tests that need one."""

from fgseg.labels import load_label_set

THIN_STREET = load_label_set("thin_street")
CLASSES, FOREGROUND, NUM_CLASSES = THIN_STREET.classes, THIN_STREET.foreground, THIN_STREET.num_classes
