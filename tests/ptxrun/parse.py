"""PTX text -> Kernel: instructions, labels, registers, parameters and declared memory."""

import re
import struct
from dataclasses import dataclass, field

from .errors import PtxSyntaxError

REGISTER_BITS = {
    "pred": 1,
    "b8": 8,
    "b16": 16,
    "b32": 32,
    "b64": 64,
    "u8": 8,
    "u16": 16,
    "u32": 32,
    "u64": 64,
    "s8": 8,
    "s16": 16,
    "s32": 32,
    "s64": 64,
    "f16": 16,
    "f32": 32,
    "f64": 64,
}


@dataclass(frozen=True)
class Reg:
    """A declared register; slot indexes the machine's register file."""

    name: str
    slot: int
    bits: int


@dataclass(frozen=True)
class Imm:
    """A literal. Floats written 0f/0d keep their bit pattern and width in float_bits."""

    value: int
    float_bits: int = 0


@dataclass(frozen=True)
class Special:
    """A read-only register such as %tid.x."""

    name: str


@dataclass(frozen=True)
class Symbol:
    """The address of a declared variable or parameter."""

    name: str


@dataclass(frozen=True)
class Mem:
    """[base + offset], base being a Reg, Symbol or Imm."""

    base: object
    offset: int


@dataclass(frozen=True)
class Vec:
    items: tuple


@dataclass(frozen=True)
class Sink:
    """The operand '_': a result nobody wants."""


@dataclass(frozen=True)
class Pair:
    """d|p: two destinations of one instruction."""

    first: object
    second: object


@dataclass
class Instr:
    opcode: str
    operands: tuple
    guard: object = None  # Reg or None
    negated: bool = False
    text: str = ""
    source: str = ""
    index: int = -1
    parts: tuple = ()

    def describe(self):
        place = f" ({self.source})" if self.source else ""
        return f"instruction {self.index}: {self.text}{place}"


@dataclass
class Variable:
    """A declared array in shared, global or local memory."""

    name: str
    space: str
    size: int
    align: int
    data: bytes = b""


@dataclass
class Kernel:
    name: str
    params: list  # [(name, type)]
    instrs: list = field(default_factory=list)
    labels: dict = field(default_factory=dict)  # name -> instruction index
    register_bits: list = field(default_factory=list)
    variables: dict = field(default_factory=dict)  # name -> Variable
    threads: int = 0  # .reqntid, 0 if absent


_ENTRY = re.compile(r"\.entry\s+([\w$]+)\s*\((.*?)\)\s*([^{]*)\{", re.S)
_VARIABLE = re.compile(
    r"\.(shared|global|const|local)\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+([\w$]+)\s*(\[\s*\d*\s*\])?"
    r"\s*(?:=\s*(\{[^}]*\}|[^;]+))?\s*;"
)
_REG_RANGE = re.compile(r"([%\w$.]+)<(\d+)>$")
_LABEL = re.compile(r"\s*([\w$]+)\s*:(?!:)")
_LOCATION = re.compile(r"\.(loc|file)\s")
_GUARD = re.compile(r"@(!?)\s*([%\w$]+)\s+")


def parse(text, name=None):
    """Parse a PTX module and return its kernel (the only one, or the one called name)."""
    text = re.sub(r"/\*.*?\*/", " ", text, flags=re.S)
    text = re.sub(r"//[^\n]*", "", text)
    files = {n: path.rsplit("/", 1)[-1] for n, path in re.findall(r'\.file\s+(\d+)\s+"([^"]*)"', text)}
    for match in _ENTRY.finditer(text):
        if name is None or match.group(1) == name:
            kernel = Kernel(match.group(1), _parameters(match.group(2)))
            ntid = re.search(r"\.reqntid\s+(\d+)", match.group(3))
            kernel.threads = int(ntid.group(1)) if ntid else 0
            for variable in _VARIABLE.finditer(text[: match.start()]):
                _declare_variable(kernel, variable)
            _Body(kernel, files).read(text, match.end())
            return kernel
    raise PtxSyntaxError(f"no kernel {name or ''} in the PTX text")


def _parameters(text):
    params = []
    for item in filter(None, (p.strip() for p in text.split(","))):
        words = item.split()
        kinds = [w[1:] for w in words if w[0] == "." and w[1:] in REGISTER_BITS]
        if words[0] != ".param" or len(kinds) != 1 or "[" in item:
            raise PtxSyntaxError(f"unsupported parameter: {item}")
        params.append((words[-1], kinds[0]))
    return params


def _declare_variable(kernel, match):
    space, align, kind, name, dims, init = match.groups()
    item = REGISTER_BITS[kind] // 8
    count = int(re.sub(r"\D", "", dims) or 0) if dims else 1
    data = b""
    if init:
        values = [int(v, 0) for v in init.strip("{} \n").split(",")]
        data = b"".join((v % (1 << 8 * item)).to_bytes(item, "little") for v in values)
        data += bytes(max(0, count * item - len(data)))
    kernel.variables[name] = Variable(name, space, count * item, int(align or item), data)


class _Body:
    """Reads the statements between a kernel's braces, with nested register scopes."""

    def __init__(self, kernel, files):
        self.kernel, self.files = kernel, files
        self.scopes = [{}]
        self.source = ""

    def read(self, text, pos):
        start = pos
        while True:
            while pos < len(text) and text[pos].isspace():
                pos += 1
            if pos >= len(text):
                raise PtxSyntaxError("kernel body is not closed")
            char = text[pos]
            if char == "{":
                self.scopes.append({})
                pos += 1
            elif char == "}":
                self.scopes.pop()
                pos += 1
                if not self.scopes:
                    return
            elif _LOCATION.match(text, pos):
                end = text.find("\n", pos)
                self._location(text[pos:end])
                pos = end
            elif label := _LABEL.match(text, pos):
                self.kernel.labels[label.group(1)] = len(self.kernel.instrs)
                pos = label.end()
            else:
                end = text.find(";", pos)
                if end < 0:
                    raise PtxSyntaxError(f"unterminated statement after {text[start:pos][-60:]!r}")
                self._statement(" ".join(text[pos:end].split()))
                pos = end + 1

    def _location(self, line):
        words = line.split()
        if words[0] == ".loc" and len(words) >= 3:
            self.source = f"{self.files.get(words[1], 'file ' + words[1])}:{words[2]}"

    def _statement(self, text):
        if not text or text.startswith(".pragma"):
            return
        if text.startswith(".reg"):
            self._registers(text)
        elif text.startswith("."):
            match = _VARIABLE.match(text + ";")
            if not match:
                raise PtxSyntaxError(f"unsupported declaration: {text}")
            _declare_variable(self.kernel, match)
        else:
            self._instruction(text)

    def _registers(self, text):
        _, kind, names = text.split(None, 2)
        bits = REGISTER_BITS[kind[1:]]
        for name in (n.strip() for n in names.split(",")):
            spread = _REG_RANGE.match(name)
            if spread:
                for i in range(int(spread.group(2))):
                    self._new_register(f"{spread.group(1)}{i}", bits)
            else:
                self._new_register(name, bits)

    def _new_register(self, name, bits):
        self.scopes[-1][name] = Reg(name, len(self.kernel.register_bits), bits)
        self.kernel.register_bits.append(bits)

    def _instruction(self, text):
        instr = Instr("", (), text=text, source=self.source, index=len(self.kernel.instrs))
        guard = _GUARD.match(text)
        rest = text
        if guard:
            instr.negated = guard.group(1) == "!"
            instr.guard = self._operand(guard.group(2))
            rest = text[guard.end() :]
        opcode, _, operands = rest.partition(" ")
        instr.opcode = opcode
        instr.parts = tuple(re.split(r"\.", opcode))
        instr.operands = tuple(self._operand(o) for o in _split(operands))
        self.kernel.instrs.append(instr)

    def _operand(self, text):
        text = text.strip()
        if text.startswith("{"):
            return Vec(tuple(self._operand(o) for o in _split(text[1:-1])))
        if text.startswith("["):
            return self._memory(text[1:-1])
        if text == "_":
            return Sink()
        if "|" in text:
            first, second = text.split("|")
            return Pair(self._operand(first), self._operand(second))
        for scope in reversed(self.scopes):
            if text in scope:
                return scope[text]
        if text.startswith("%"):
            return Special(text)
        if re.match(r"[-+]?\d", text):
            return _literal(text)
        if re.match(r"[\w$.]+$", text):
            return Symbol(text)
        raise PtxSyntaxError(f"unreadable operand {text!r}")

    def _memory(self, text):
        base, plus, offset = text.partition("+")
        if not plus:
            return Mem(self._operand(base), 0)
        return Mem(self._operand(base), int(offset.strip().rstrip("U"), 0))


def _literal(text):
    if text[:2] in ("0f", "0F"):
        return Imm(int(text[2:], 16), 32)
    if text[:2] in ("0d", "0D"):
        return Imm(int(text[2:], 16), 64)
    if "." in text:
        return Imm(int.from_bytes(struct.pack("<d", float(text)), "little"), 64)
    return Imm(int(text.rstrip("U"), 0))


def _split(text):
    """Split at commas that are outside braces and brackets."""
    items, depth, start = [], 0, 0
    for i, char in enumerate(text):
        if char in "{[":
            depth += 1
        elif char in "}]":
            depth -= 1
        elif char == "," and depth == 0:
            items.append(text[start:i])
            start = i + 1
    items.append(text[start:])
    return [i.strip() for i in items if i.strip()]
