"""Networks as C libraries: kernels and weights as objects, a C driver; no TVM on the device."""

from tvm_backend.standalone.elf import SectionSizes, section_sizes
from tvm_backend.standalone.library import DEFAULT_NAME, Standalone, export_standalone

__all__ = ["DEFAULT_NAME", "SectionSizes", "Standalone", "export_standalone", "section_sizes"]
