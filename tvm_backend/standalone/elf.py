"""What object files, archives and libraries contain, read from their ELF headers."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fxquant.errors import FileFormatError, TargetError

ARCHIVE_MAGIC = b"!<arch>\n"
_NOBITS, _SYMTAB = 8, 2
_WRITE, _ALLOC, _EXEC = 1, 2, 4
_GLOBAL, _WEAK = 1, 2
_RELRO = ".data.rel.ro"


@dataclass(frozen=True, slots=True)
class SectionSizes:
    """Bytes of a file's parts.

    Attributes:
        text: Code.
        rodata: Read-only data: weights, tables, and tables of pointers that only the loader writes.
        data: Initialized data that the program may change.
        bss: Zeroed data that the program may change.
        file: The file itself, with headers, symbols and padding.
    """

    text: int
    rodata: int
    data: int
    bss: int
    file: int


@dataclass(frozen=True, slots=True)
class Section:
    """One section header."""

    name: str
    kind: int
    flags: int
    offset: int
    size: int
    link: int
    entry: int


@dataclass(frozen=True, slots=True)
class Elf:
    """One ELF file in memory."""

    content: bytes
    sections: tuple[Section, ...]
    wide: bool

    @staticmethod
    def parse(content: bytes, where: str) -> Elf:
        """Read the headers.

        Raises:
            TargetError: It is no little-endian ELF file.
            FileFormatError: It is damaged.
        """
        if content[:4] != b"\x7fELF" or content[5:6] != b"\x01":
            raise TargetError(
                f"{where} is no little-endian ELF file",
                why="constants are stored little-endian, and sections are read from ELF headers",
                remedy="choose a target with a little-endian ELF triple",
            )
        wide = content[4] == 2
        try:
            return Elf(content, tuple(_sections(content, wide)), wide)
        except (struct.error, IndexError, ValueError, OverflowError) as error:
            raise FileFormatError(f"{where} is damaged", why=str(error)) from error

    def symbols(self) -> Iterator[tuple[str, bool]]:
        """Global and weak symbols: name, and whether this file defines it."""
        for section in self.sections:
            if section.kind != _SYMTAB:
                continue
            names = self.sections[section.link]
            for at in range(section.offset, section.offset + section.size, section.entry):
                if self.wide:
                    name, info, _, index, _, _ = struct.unpack_from("<IBBHQQ", self.content, at)
                else:
                    name, _, _, info, _, index = struct.unpack_from("<IIIBBH", self.content, at)
                if info >> 4 in (_GLOBAL, _WEAK) and name:
                    yield _text(self.content, names.offset + name), index != 0


def _sections(content: bytes, wide: bool) -> list[Section]:
    table = struct.unpack_from("<Q" if wide else "<I", content, 40 if wide else 32)[0]
    entry, count, names = struct.unpack_from("<HHH", content, 58 if wide else 46)
    layout = "<IIQQQQIIQQ" if wide else "<10I"
    rows = [struct.unpack_from(layout, content, table + i * entry) for i in range(count)]
    strings = rows[names][4] if rows else 0
    return [
        Section(_text(content, strings + name), kind, flags, offset, size, link, entry_size)
        for name, kind, flags, _, offset, size, link, _, _, entry_size in rows
    ]


def _text(content: bytes, at: int) -> str:
    return content[at : content.index(b"\0", at)].decode(errors="replace")


def section_sizes(path: str | Path) -> SectionSizes:
    """Sizes of an object file, an archive or a shared library, as the `size` program counts.

    Args:
        path: The file.

    Raises:
        TargetError: It is no little-endian ELF file.
        FileFormatError: It is damaged.
    """
    content = Path(path).read_bytes()
    members = _members(content) if content.startswith(ARCHIVE_MAGIC) else [content]
    text = rodata = data = bss = 0
    for member in members:
        for section in Elf.parse(member, str(path)).sections:
            if not section.flags & _ALLOC:
                continue
            if section.flags & _EXEC:
                text += section.size
            elif not section.flags & _WRITE or section.name.startswith(_RELRO):
                rodata += section.size
            elif section.kind == _NOBITS:
                bss += section.size
            else:
                data += section.size
    return SectionSizes(text, rodata, data, bss, len(content))


def _members(content: bytes) -> list[bytes]:
    """The objects in an archive."""
    found, at = [], len(ARCHIVE_MAGIC)
    while at + 60 <= len(content):
        size = int(content[at + 48 : at + 58])
        if not content[at : at + 16].startswith((b"/ ", b"// ")):
            found.append(content[at + 60 : at + 60 + size])
        at += 60 + size + size % 2
    return found


def undefined_symbols(path: Path) -> list[str]:
    """What an object needs from others."""
    elf = Elf.parse(path.read_bytes(), str(path))
    return sorted({name for name, defined in elf.symbols() if not defined})


def write_archive(path: Path, objects: list[Path]) -> None:
    """Write a static library: objects behind an index of the symbols they define.

    The same objects give the same bytes: no times and no owners.
    """
    contents = [object_file.read_bytes() for object_file in objects]
    names = [[n for n, d in Elf.parse(content, str(path)).symbols() if d] for content in contents]
    table = b"".join(name.encode() + b"\0" for per_object in names for name in per_object)
    count = sum(map(len, names))
    long_names = b"".join(f"{p.name}/\n".encode() for p in objects)
    index_size = 4 + 4 * count + len(table)
    at = len(ARCHIVE_MAGIC) + 60 + index_size + index_size % 2
    at += 60 + len(long_names) + len(long_names) % 2
    offsets, members, name_at = [], [], 0
    for object_file, content, defined in zip(objects, contents, names, strict=True):
        offsets += [at] * len(defined)
        member = _member(f"/{name_at}", content)
        members.append(member)
        name_at += len(object_file.name) + 2
        at += len(member)
    index = struct.pack(f">{count + 1}I", count, *offsets) + table
    head = ARCHIVE_MAGIC + _member("/", index) + _member("//", long_names)
    path.write_bytes(head + b"".join(members))


def _member(name: str, content: bytes) -> bytes:
    header = f"{name:<16}{0:<12}{0:<6}{0:<6}{'644':<8}{len(content):<10}`\n".encode()
    return header + content + b"\n" * (len(content) % 2)
