"""From tables to typed pieces: every table checked against fixed.FIELDS or the primitive it uses; all problems collected."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection
from typing import Any, TypeVar

from composer.errors import suggest
from composer.options import Ref
from composer.recipe import fixed, maxima
from composer.recipe.edit import near
from composer.recipe.find import unknown_head
from composer.recipe.inert import check_measured, read_analysis, read_expect
from composer.recipe.keys import ROOTS, known
from composer.recipe.merge import Origins
from composer.recipe.paths import MISSING, Dotted, get, split
from composer.recipe.problems import Problems
from composer.recipe.remember import keep, remembered
from composer.recipe.search import check_search
from composer.recipe.terms import ID, NAME, each, keep_use, measures, piece
from composer.recipe.types import Evaluate, MeasureSpec, Method, ModelSpec, OptimSpec, Outer, Select, Threat, Trace, Train, Use
from composer.recipe.uses import Components, fixed_table
from composer.recipe.write import quote
from composer.registry import REGISTRY, Registry

T = TypeVar("T")
TEXTS = ("about", "paper")
OTHER = ("version", "requires")
TABLES = tuple(name for name in ROOTS if name not in TEXTS + OTHER)


class Reader:
    """Reads the merged tables of one recipe. `pieces` holds the typed fields by name; the rest is in `problems` and `full`.

    A piece with a mistake is read as far as it goes; `problems.unread` says what had to be left out.

    base        the recipe before toggles, phases and cells: [search] may name what one of them has dropped
    commanded   paths of the command line
    lost        a parent is missing
    """

    def __init__(self, tables: dict[str, Any], origins: Origins, registry: Registry = REGISTRY, protocols: Collection[str] | None = None,
                 base: dict[str, Any] | None = None, commanded: Collection[Dotted] = (), lost: bool = False):
        self.protocols, self.base, self.commanded = protocols, tables if base is None else base, commanded
        self.tables, self.problems = tables, Problems(origins)
        self.problems.unread.lost = lost
        self.uses = Components(registry, self.problems)
        self.registry = registry
        self.pieces: dict[str, Any] = {}

    @property
    def full(self) -> dict[str, Any]:
        return self.uses.full

    def read(self) -> Reader:
        self._head()
        p = self.pieces
        p["threat"] = self.uses.threat = self._once("threat", self._threat)
        self.uses.threat_text = repr(p["threat"])
        p["train"] = self._once("train", self._train)
        p["data"] = self._once("data", lambda: self._component("data", "data"))
        p["augment"] = self.each("augment", "augment", ID)
        p["model"] = self._once("model", self._model)
        p["optim"] = self._once("optim", self._optim)
        p["method"] = self._method(any(self._soft(u) for u in p["augment"]))
        p["select"] = self._once("select", self._select)
        p["trace"] = self._once("trace", self._trace)
        p["evaluate"] = self._once("evaluate", self._evaluate)
        self._protocol(p["evaluate"])
        p["search"] = self._search()
        p["analysis"] = self._once("analysis", lambda: read_analysis(self.uses, self.table("analysis")))
        p["expect"] = self._once("expect", lambda: read_expect(self.problems, self.table("expect")))
        self._labels()
        self._followed()
        return self

    def _once(self, name: str, build: Callable[[], T]) -> T:
        """A table of its own, which depends on no other but the threat."""
        return remembered(self.uses, "table", self.tables.get(name, {}), (name,), build)

    def judged(self, measured: bool) -> None:
        """Whole runs only, not single phases: the weights that are judged are a part's, and selection has an epoch left.

        measured   it runs as its file says, so [expect] and [analysis] speak of what is measured
        """
        for name in ("select", "evaluate"):
            piece = self.pieces[name]
            parts = self.table("parts")
            if not self.problems.unread.lost and piece.weights != "live" and piece.weights not in parts:
                self.problems.add((name, "weights"), f"weights = {quote(piece.weights)}", why="the recipe has no such part",
                                  fix=suggest(piece.weights, ["live", *parts], "weights"))
        head = self.pieces["model"].head
        if measured and self.pieces["evaluate"].logits == "cosine" and self.registry.has("head", head.use) and not self.registry.get("head", head.use).flags.get("cosines", True):
            self.problems.add(("evaluate", "logits"), 'logits = "cosine"', why=f"the head '{head.use}' has no scale: its logits are no cosines",
                              fix='"scaled", or model.head = "hypersphere"')
        select, train = self.pieces["select"], self.pieces["train"]
        if isinstance(select.from_, int) and select.from_ > train.epochs and select.report != "last" and self.right("train"):
            self.problems.add(("select", "from"), f"from = {select.from_}", why=f"the run has {train.epochs} epochs: none could be selected",
                              fix="write a smaller epoch, or from = \"last_phase\"")
        if measured and not self.problems.unread.below(("evaluate",)):
            check_measured(self.problems, self.pieces)

    def right(self, table: str) -> bool:
        """True where nothing in the table is wrong."""
        return not any(path[0] == table for path, _ in self.problems.found)

    def table(self, name: str) -> dict[str, Any]:
        held = self.tables.get(name, {})
        return held if isinstance(held, dict) else {}

    def each(self, table: str, kind: str, pattern: Any) -> tuple[Any, ...]:
        return each(self.uses, self.table(table), (table,), lambda id, given, path: piece(self.uses, kind, id, given, path), pattern)

    # -- the head ------------------------------------------------------------------------------------------------------------------

    def _head(self) -> None:
        for key, value in self.tables.items():
            if key in TABLES:
                if not isinstance(value, dict):
                    self.problems.add((key,), f"{key} = {quote(value)}", why="a table is needed", fix=f"write [{key}]")
                    self.problems.unread.pieces.add((key,))
            elif key not in TEXTS + OTHER:
                error = unknown_head(key, "", [*TABLES, *TEXTS, *OTHER, "extends", "setting", "drop", "on"])
                self.problems.add((key,), error.what, fix=error.fix)
                for id in value if isinstance(value, dict) else ():      # whatever it was meant to be
                    self.problems.unread.pieces.update((table, id) for table in ("inner" if id.startswith("x_") else "parts", "views", "terms"))
            elif key in TEXTS and not isinstance(value, str):
                self.problems.add((key,), f"{key} = {quote(value)}", why="a string is needed")
        requires = self.tables.get("requires", [])
        self.pieces["requires"] = ()
        if not isinstance(requires, list) or not all(isinstance(r, str) for r in requires):
            self.problems.add(("requires",), f"requires = {quote(requires)}", why="a list of plugins' names is needed",
                              fix='write requires = ["mail"]')
            return
        self.pieces["requires"] = tuple(requires)
        loaded = plugin_names(self.registry) if requires else []
        for number, name in enumerate(requires):
            if name not in loaded:
                self.problems.add(("requires",), f"the plugin '{name}' is not loaded", item=number,
                                  fix=f"{suggest(name, loaded, 'plugins')}\nname its file with --plugin FILE, or in COMPOSER_PLUGINS")

    # -- fixed tables --------------------------------------------------------------------------------------------------------------

    def _fixed(self, name: str, *, others: tuple[str, ...] = ()) -> dict[str, Any]:
        """`others`: keys of the table that somebody else reads."""
        values = fixed_table(self.uses, name, {k: v for k, v in self.table(name).items() if k not in others}, (name,))
        for key, value in values.items():
            self.uses.keep((name, key), value)
        return values

    def _threat(self) -> Threat:
        v = self._fixed("threat")
        step = v["step"]
        if isinstance(v["eps"], str) or isinstance(step, str) and "eps" not in step:
            key = "eps" if isinstance(v["eps"], str) else "step"
            self.problems.add(("threat", key), f"{key} = {quote(v[key])}", why="the threat is what such words refer to",
                              fix='write a number, or "8/255"' + (', or a word of its eps: "eps/4"' if key == "step" else ""))
            v |= {"step": "eps/4", "eps": 8 / 255 if key == "eps" else v["eps"]}
        threat = Threat(v["norm"], v["eps"], v["eps"] / 4, v["steps"], v["start"])
        self.uses.threat = threat
        step = self.uses.number("eps", v["step"].replace("eps", "threat")) if isinstance(v["step"], str) else v["step"]
        return Threat(threat.norm, threat.eps, step, threat.steps, self.uses.number("start", threat.start))

    def _train(self) -> Train:
        return Train(**self._fixed("train"))

    def _select(self) -> Select:
        v = self._fixed("select")
        if v["held_out"] == 0 and v["report"] != "last" and self.right("select"):
            self.problems.add(("select", "report"), f"report = {quote(v['report'])} with held_out = 0",
                              why="without held-out images nothing can select", fix='set select.held_out, or write report = "last"')
        attack = v.pop("attack")
        if attack is None and v["held_out"] and v["report"] != "last":
            attack = Ref("measure", "pgd", {"steps": 10, "loss": Ref("loss", "cw"), "keep": "any"})
        if isinstance(attack, Ref):
            unit = self.registry.get("measure", attack.use).flags.get("unit")
            if unit:
                self.problems.add(("select", "attack"), f"attack = {quote(attack.use)}", why=f"a diagnostic in {unit} is no accuracy, and selects nothing",
                                  fix='write attack = { use = "pgd" }')
            attack = MeasureSpec(attack.use, attack.use, attack.options)
        return Select(**{"from_" if key == "from" else key: value for key, value in v.items()}, attack=attack)

    def _trace(self) -> Trace:
        found = measures(self.uses, "trace", self.table("trace"))
        v = self._fixed("trace", others=self._others("trace"))
        return Trace(v["every"], v["on"], found)

    def _evaluate(self) -> Evaluate:
        found = measures(self.uses, "evaluate", self.table("evaluate"))
        v = self._fixed("evaluate", others=self._others("evaluate"))
        return Evaluate(v["use"], tuple(MeasureSpec(m.name, m.use, m.options, m.n or v["n"]) for m in found), v["weights"], v["logits"])

    def _protocol(self, evaluate: Evaluate) -> None:
        if evaluate.protocol and self.protocols is not None and evaluate.protocol not in self.protocols:
            self.problems.add(("evaluate", "use"), f"there is no protocol '{evaluate.protocol}'", fix=suggest(evaluate.protocol, self.protocols, "protocols"))
            self.problems.unread.pieces.add(("evaluate", "use"))

    def _search(self) -> dict[str, dict[str, Any]]:
        """The space depends on what the recipe was before any edit: it is the same for all its cells."""
        key = ("search", id(self.base), repr(self.table("search")), tuple(self.commanded))
        held = self.registry.memory.get(key)
        if held and held[1] is self.base:
            return held[0]
        before = len(self.problems)
        found = check_search(self.table("search"), self.base, self.problems, self.registry, self.commanded)
        if len(self.problems) == before and not self.problems.unread.lost:
            keep(self.registry, key, (found, self.base))
        return found

    def _others(self, name: str) -> tuple[str, ...]:
        return tuple(key for key in self.table(name) if key not in fixed.names(name))

    # -- components ----------------------------------------------------------------------------------------------------------------

    def _component(self, table: str, kind: str) -> Use:
        """[data], [model], [optim]: one component each, besides the table's own keys. Nameless where nobody knows what it uses."""
        own = tuple(fixed.names(table)) if table in fixed.FIELDS else ()
        given = {key: value for key, value in self.table(table).items() if key not in own}
        if "use" in given:
            primitive = self.uses.primitive((kind,), given.pop("use"), (table,))
        else:
            primitive = None
            if isinstance(self.tables.get(table, {}), dict) and not self.problems.unread.lost:
                self.problems.add((table,), f"[{table}] does not say what it uses", fix=f"add use = one of {', '.join(self.registry.names(kind))}")
        if primitive is None:
            return Use(kind, table, "")
        options = self.uses.options(primitive, given, (table,), own)
        keep_use(self.uses, (table,), primitive, options)
        return Use(kind, table, primitive.name, self.uses.settle(primitive, options))

    def _with_fields(self, table: str) -> tuple[Use, dict[str, Any]]:
        v = self._fixed(table, others=self._others(table))
        return self._component(table, table), v

    def _model(self) -> ModelSpec:
        use, v = self._with_fields("model")
        if self.right("model") and ((v["mean"] is None) != (v["std"] is None) or v["mean"] is not None and len(v["mean"]) != len(v["std"])):
            self.problems.add(("model",), "normalisation needs mean and std", why="both, with a number a channel", fix="give both, or neither")
        return ModelSpec(use.use, use.options, **v)

    def _optim(self) -> OptimSpec:
        use, v = self._with_fields("optim")
        return OptimSpec(use.use, use.options, **v)

    def _soft(self, use: Use) -> bool:
        return bool(self.registry.get("augment", use.use).flags.get("soft"))

    def _method(self, soft: bool) -> Method:
        inner = each(self.uses, self.table("inner"), ("inner",), lambda id, given, path: maxima.inner(self.uses, id, given, path), NAME)
        outer = self._once("outer", lambda: Outer(**self._fixed("outer")))
        terms, views, parts = self.each("terms", "loss", ID), self.each("views", "view", NAME), self.each("parts", "part", NAME)
        if not self.table("terms") and isinstance(self.tables.get("terms", {}), dict) and not self.problems.unread.lost:
            self.problems.add(("terms",), "the recipe has no [terms]: there is nothing to minimise",
                              fix='add [terms] with, say, ce = { at = "clean" }')
            self.problems.unread.pieces.add(("terms",))
        return Method(inner, outer, terms, views, parts, soft)

    def _followed(self) -> None:
        """A schedule that follows another path needs that path."""
        for here, text in self.uses.followed:
            try:
                path = split(text)
            except ValueError as error:
                self.problems.add(here, str(error))
                continue
            lost = self.problems.unread.lost
            if not lost and get(self.tables, path) is MISSING and not known(self.tables, path, self.registry):
                self.problems.add(here, f"path = {quote(text)}", why="there is no such path in the recipe", fix=near(self.tables, path))

    def _labels(self) -> None:
        """Under a soft augmentation the labels are `y_soft`; a term that asks for `y` would silently train on other labels."""
        method = self.pieces["method"]
        if not method.soft:
            return
        soft = next(u.id for u in self.pieces["augment"] if self._soft(u))
        groups = [(("terms",), method.terms), *((("inner", i.id, "terms"), i.terms) for i in method.inner)]
        for path, terms in groups:
            for term in terms:
                uses = [term, term.gain] if isinstance(term.gain, Use) else [term]
                if (*path, term.id) in self.problems.unread.guessed:
                    continue
                if any(u.rebind.get(n.name, n.name) == "y" for u in uses for n in self.registry.get(u.kind, u.use).needs):
                    self.problems.add((*path, term.id), f"term '{term.id}' needs the labels y",
                                      why=f"augment.{soft} mixes labels: a batch has y_soft, not y", fix="use soft_ce, or drop the augmentation")


def plugin_names(registry: Registry) -> list[str]:
    """Plugins that have been loaded: what the loader says, and the files that primitives come from."""
    plugins = sys.modules.get("composer.plugins")
    named = [each.name for each in plugins.loaded()] if plugins else []
    return sorted({*named, *(p.file.stem for p in registry.all() if p.file)})
