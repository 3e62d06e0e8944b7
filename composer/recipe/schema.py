"""From tables to typed pieces: every table checked against fixed.FIELDS or the primitive it uses; all problems collected."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from composer.errors import suggest
from composer.options import Ref
from composer.recipe import fixed
from composer.recipe.keys import ROOTS
from composer.recipe.merge import Origins
from composer.recipe.paths import Dotted
from composer.recipe.problems import Problems, quote
from composer.recipe.search import check_search
from composer.recipe.types import Evaluate, Inner, MeasureSpec, Method, ModelSpec, OptimSpec, Outer, Select, Term, Threat, Trace, Train, Use
from composer.recipe.uses import Components, fixed_table, rebindable
from composer.registry import REGISTRY, Primitive, Registry

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")                  # what becomes part of a tensor's name
ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")
PRINTED = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_@/.:+-]*")
TEXTS = ("about", "paper")
OTHER = ("version", "requires")
TABLES = tuple(name for name in ROOTS if name not in TEXTS + OTHER)


class Reader:
    """Reads the merged tables of one recipe. `pieces` holds the typed fields by name; the rest is in `problems` and `full`."""

    def __init__(self, tables: dict[str, Any], origins: Origins, registry: Registry = REGISTRY, protocols: Collection[str] | None = None):
        self.protocols = protocols
        self.tables, self.problems = tables, Problems(origins)
        self.uses = Components(registry, self.problems)
        self.registry = registry
        self.pieces: dict[str, Any] = {}

    @property
    def full(self) -> dict[str, Any]:
        return self.uses.full

    def read(self) -> Reader:
        self._head()
        p = self.pieces
        p["threat"] = self.uses.threat = self._threat()
        p["train"] = self._train()
        p["data"] = self._component("data", "data")
        p["augment"] = self._each("augment", self._augment, ID)
        p["model"] = self._model()
        p["optim"] = self._optim()
        p["method"] = self._method(any(self._soft(u) for u in p["augment"]))
        p["select"] = self._select()
        p["trace"] = self._trace()
        p["evaluate"] = self._evaluate()
        self._search()
        self._labels()
        return self

    # -- the head ------------------------------------------------------------------------------------------------------------------

    def _head(self) -> None:
        for key, value in self.tables.items():
            if key in TABLES:
                if not isinstance(value, dict):
                    self.problems.add((key,), f"{key} = {quote(value)}", why="a table is needed", fix=f"write [{key}]")
            elif key not in TEXTS + OTHER:
                self.problems.add((key,), f"a recipe has no table or key '{key}'",
                                  fix=suggest(key, [*TABLES, *TEXTS, *OTHER, "extends", "setting", "drop", "on"], "tables and keys"))
            elif key in TEXTS and not isinstance(value, str):
                self.problems.add((key,), f"{key} = {quote(value)}", why="a string is needed")
        requires = self.tables.get("requires", [])
        if not isinstance(requires, list) or not all(isinstance(r, str) for r in requires):
            self.problems.add(("requires",), f"requires = {quote(requires)}", why="a list of plugins' names is needed", fix='write requires = ["mail"]')
            return
        self.pieces["requires"] = tuple(requires)
        loaded = plugin_names(self.registry)
        for name in requires:
            if name not in loaded:
                self.problems.add(("requires",), f"the plugin '{name}' is not loaded",
                                  fix=f"{suggest(name, loaded, 'plugins')}\nname the file with --plugin FILE, or in COMPOSER_PLUGINS")

    def table(self, name: str) -> dict[str, Any]:
        held = self.tables.get(name, {})
        return held if isinstance(held, dict) else {}

    # -- fixed tables --------------------------------------------------------------------------------------------------------------

    def _fixed(self, name: str, extra: tuple[str, ...] = ()) -> dict[str, Any] | None:
        values = fixed_table(self.uses, name, self.table(name), (name,), extra=extra)
        if values is not None:
            for key, value in values.items():
                self.uses.keep((name, key), value)
        return values

    def _threat(self) -> Threat | None:
        v = self._fixed("threat")
        if v is None:
            return None
        if isinstance(v["eps"], str):
            self.problems.add(("threat", "eps"), f"eps = {quote(v['eps'])}", why="the threat's own radius cannot be a word", fix='write "8/255" or 0.031')
            return None
        threat = Threat(v["norm"], float(v["eps"]), float(v["eps"]) / 4, v["steps"], v["start"])
        self.uses.threat = threat
        step = v["step"]
        if isinstance(step, str):
            step = self.uses.number("eps", step.replace("eps", "threat"))
            if isinstance(step, str):
                self.problems.add(("threat", "step"), f"step = {quote(v['step'])}", why="the threat's step is a number, or a word of its eps", fix='write "eps/4"')
                return None
        return Threat(threat.norm, threat.eps, float(step), threat.steps, self.uses.number("start", threat.start))

    def _train(self) -> Train | None:
        v = self._fixed("train")
        return None if v is None else Train(**v)

    def _select(self) -> Select | None:
        v = self._fixed("select")
        if v is None:
            return None
        if v["held_out"] == 0 and v["report"] != "last":
            self.problems.add(("select", "report"), f"report = {quote(v['report'])} with held_out = 0", why="without held-out images nothing can select",
                              fix='set select.held_out, or write report = "last"')
        attack = v.pop("attack")
        if isinstance(attack, Ref):
            attack = MeasureSpec(attack.use, attack.use, attack.options)
        return Select(**{"from_" if k == "from" else k: x for k, x in v.items()}, attack=attack)

    def _trace(self) -> Trace | None:
        measures = self._measures("trace")
        v = self._fixed("trace", extra=tuple(self.table("trace")))
        return None if v is None else Trace(v["every"], v["on"], measures)

    def _evaluate(self) -> Evaluate | None:
        measures = self._measures("evaluate")
        v = self._fixed("evaluate", extra=tuple(self.table("evaluate")))
        if v is None:
            return None
        if v["use"] and self.protocols is not None and v["use"] not in self.protocols:
            self.problems.add(("evaluate", "use"), f"there is no protocol '{v['use']}'", fix=suggest(v["use"], self.protocols, "protocols"))
            return None
        measures = tuple(MeasureSpec(m.name, m.use, m.options, m.n or v["n"]) for m in measures)
        return Evaluate(v["use"], measures, v["weights"], v["logits"])

    # -- components ----------------------------------------------------------------------------------------------------------------

    def _component(self, table: str, kind: str, extra: tuple[str, ...] = ()) -> Use | None:
        """[data], [model], [optim]: one component each."""
        given = {key: value for key, value in self.table(table).items() if key not in extra}
        if "use" not in given:
            self.problems.add((table,), f"[{table}] does not say what it uses", fix=f"add use = one of {', '.join(self.registry.names(kind))}")
            return None
        primitive = self.uses.primitive((kind,), given.pop("use"), (table,))
        if primitive is None:
            return None
        options = self.uses.options(primitive, given, (table,), extra)
        if options is None:
            return None
        self._keep_use((table,), primitive, options)
        return Use(kind, table, primitive.name, self.uses.settle(primitive, options))

    def _keep_use(self, path: Dotted, primitive: Primitive, options: dict[str, Any]) -> None:
        self.uses.keep((*path, "use"), primitive.name)
        for key, value in options.items():
            self.uses.keep((*path, key), value)

    def _model(self) -> ModelSpec | None:
        v = fixed_table(self.uses, "model", {k: x for k, x in self.table("model").items() if k in fixed.names("model")}, ("model",))
        use = self._component("model", "model", tuple(fixed.names("model")))
        if v is None or use is None:
            return None
        for key, value in v.items():
            self.uses.keep(("model", key), value)
        if (v["mean"] is None) != (v["std"] is None):
            self.problems.add(("model",), "normalisation needs both mean and std", fix="give both, a number a channel, or neither")
        return ModelSpec(use.use, use.options, **v)

    def _optim(self) -> OptimSpec | None:
        v = fixed_table(self.uses, "optim", {k: x for k, x in self.table("optim").items() if k in fixed.names("optim")}, ("optim",))
        use = self._component("optim", "optim", tuple(fixed.names("optim")))
        if v is None or use is None:
            return None
        for key, value in v.items():
            self.uses.keep(("optim", key), value)
        return OptimSpec(use.use, use.options, v["clip"], v["decay_exclude"], v["decay_at"])

    def _each(self, table: str, build: Any, pattern: re.Pattern[str], path: Dotted | None = None, given: Any = None) -> tuple[Any, ...]:
        """A table of components by id, in order of declaration; wrong ones are left out."""
        path = path or (table,)
        found = []
        for key, value in (self.table(table) if given is None else given).items():
            here = (*path, key)
            if not isinstance(value, dict):
                self.problems.add(here, f"{key} = {quote(value)}", why="a table is needed", fix=f"write {key} = {{}}, or {key} = {{ option = value }}")
            elif not pattern.fullmatch(key):
                self.problems.add(here, f"'{key}' cannot be a name here", why="names are letters, digits and _, and no digit first"
                                  if pattern is NAME else "names are letters, digits, _ and -")
            else:
                piece = build(key, value, here)
                found += [] if piece is None else [piece]
        return tuple(found)

    def _measures(self, table: str) -> tuple[MeasureSpec, ...]:
        own = set(fixed.names(table))
        return self._each(table, self._measure, PRINTED, given={k: v for k, v in self.table(table).items() if k not in own and self._is_measure(table, k, v)})

    def _is_measure(self, table: str, key: str, value: Any) -> bool:
        if isinstance(value, dict):
            return True
        self.problems.add((table, key), f"[{table}] has no key '{key}'",
                          fix=f"{suggest(key, fixed.names(table), 'keys')}\na measure is a table: {key} = {{ use = \"pgd\", steps = 20 }}")
        return False

    def _measure(self, name: str, given: dict[str, Any], path: Dotted) -> MeasureSpec | None:
        primitive = self.uses.primitive(("measure",), given.get("use", name), path)
        if primitive is None:
            return None
        taken = primitive.option("n") is not None
        n = None if taken else given.get("n")
        options = self.uses.options(primitive, {k: v for k, v in given.items() if k != "use" and (taken or k != "n")}, path, () if taken else ("n",))
        if n is not None and fixed_table(self.uses, "measure", {"n": n}, path) is None or options is None:
            return None
        self._keep_use(path, primitive, options)
        if n is not None:
            self.uses.keep((*path, "n"), n)
        return MeasureSpec(name, primitive.name, options, n)

    def _augment(self, id: str, given: dict[str, Any], path: Dotted) -> Use | None:
        return self._use("augment", None, id, given, path)

    def _soft(self, use: Use) -> bool:
        return bool(self.registry.get("augment", use.use).flags.get("soft"))

    # -- terms, views, parts, gains ------------------------------------------------------------------------------------------------

    def _use(self, kind: str, keys: str | None, id: str, given: dict[str, Any], path: Dotted, use: str | None = None) -> Use | None:
        """A component with a point, a mode, and needs that may be rebound."""
        primitive = self.uses.primitive((kind,), given.get("use", use or id), path)
        if primitive is None:
            return None
        own = fixed.names(keys) if keys else []
        needs = [n for n in rebindable(primitive) if primitive.option(n) is None]
        rebind = {k: v for k, v in given.items() if k in needs}
        for need, name in list(rebind.items()):
            if not isinstance(name, str) or not NAME.fullmatch(name):
                self.problems.add((*path, need), f"{need} = {quote(name)}", why=f"'{need}' is a need: it is given a tensor by name",
                                  fix=f'write {need} = "adv_logits", or another name of a tensor')
        rest = {k: v for k, v in given.items() if k != "use" and k not in own and k not in needs}
        options = self.uses.options(primitive, rest, path, (*own, "use"))
        table = fixed_table(self.uses, keys, {k: v for k, v in given.items() if k in own}, path) if keys else {}
        if options is None or table is None or any(not isinstance(n, str) for n in rebind.values()):
            return None
        at = table.get("at")
        if at is not None and (at.startswith("x_") or not NAME.fullmatch(at)):
            self.problems.add((*path, "at"), f"at = {quote(at)}", why="a point is named without its x_; the natural images are clean",
                              fix=f'write at = "{at.removeprefix("x_")}"')
        self._keep_use(path, primitive, options)
        for key, value in {**rebind, **{k: v for k, v in table.items() if k != "gain"}}.items():
            self.uses.keep((*path, key), value)
        shared: dict[str, Any] = {"kind": kind, "id": id, "use": primitive.name, "options": self.uses.settle(primitive, options), "rebind": rebind,
                                  "at": at, "bn": table.get("bn"), "normalise": table.get("normalise", False)}
        if kind != "loss":
            return Use(**shared)
        return Term(**shared, weight=table["weight"], gain=self._gain(given.get("gain"), (*path, "gain")),
                    detach=self._detach(table["detach"], primitive, path))

    def _term(self, id: str, given: dict[str, Any], path: Dotted) -> Use | None:
        return self._use("loss", "term", id, given, path)

    def _view(self, id: str, given: dict[str, Any], path: Dotted) -> Use | None:
        return self._use("view", "view", id, given, path)

    def _part(self, id: str, given: dict[str, Any], path: Dotted) -> Use | None:
        return self._use("part", "part", id, given, path)

    def _gain(self, given: Any, path: Dotted) -> Use | str | None:
        if given is None:
            return None
        if isinstance(given, str) and not self.registry.has("gain", given):
            if not NAME.fullmatch(given):
                self.problems.add(path, f"gain = {quote(given)}", why="a gain, or the name of an [N] tensor, is needed")
            self.uses.keep(path, given)
            return given
        table = {"use": given} if isinstance(given, str) else given
        if not isinstance(table, dict) or "use" not in table:
            self.problems.add(path, f"gain = {quote(given)}", why="a gain, or the name of an [N] tensor, is needed",
                              fix=f"write the name of a tensor, or {{ use = \"…\" }} of {', '.join(self.registry.names('gain'))}")
            return None
        return self._use("gain", "gain", "gain", table, path)

    def _detach(self, names: tuple[str, ...], primitive: Primitive, path: Dotted) -> tuple[str, ...]:
        known = [*rebindable(primitive), "gain"]
        for name in names:
            if name not in known:
                self.problems.add((*path, "detach"), f"detach names '{name}'", why=f"loss '{primitive.name}' has no such need",
                                  fix=suggest(name, known, "needs"))
        return tuple(names)

    # -- inner maxima --------------------------------------------------------------------------------------------------------------

    def _method(self, soft: bool) -> Method | None:
        inner = self._each("inner", self._inner, NAME)
        outer = self._fixed("outer")
        terms = self._each("terms", self._term, ID)
        views = self._each("views", self._view, NAME)
        parts = self._each("parts", self._part, NAME)
        if not self.table("terms"):
            self.problems.add(("terms",), "the recipe has no [terms]: there is nothing to minimise", fix='add [terms] with, say, ce = { at = "clean" }')
        if outer is None:
            return None
        v = {k: tuple(x) if isinstance(x, list) else x for k, x in outer.items()}
        return Method(inner, Outer(**v), terms, views, parts, soft)

    def _inner(self, id: str, given: dict[str, Any], path: Dotted) -> Inner | None:
        if id != "weights" and (not id.startswith("x_") or id == "x_clean" or id == "x_"):
            self.problems.add(path, f"an inner maximum cannot be called '{id}'", why="it is named by the point it makes", fix='write [inner.x_adv], or [inner.weights]')
            return None
        if "use" not in given:
            self.problems.add(path, f"[inner.{id}] does not say what it uses", fix=f"add use = one of {', '.join(self.registry.names('inner'))}")
            return None
        primitive = self.uses.primitive(("inner",), given["use"], path)
        if primitive is None:
            return None
        own = [*fixed.names("inner"), "eps", "terms", "surface"]
        needs = [n for n in rebindable(primitive) if primitive.option(n) is None]
        rebind = {k: v for k, v in given.items() if k in needs and isinstance(v, str)}
        for need in [k for k in given if k in needs and k not in rebind]:
            self.problems.add((*path, need), f"{need} = {quote(given[need])}", why=f"'{need}' is a need: it is given a tensor by name")
        options = self.uses.options(primitive, {k: v for k, v in given.items() if k != "use" and k not in own and k not in needs}, path,
                                    (*own, "use"))
        table = fixed_table(self.uses, "inner", {k: v for k, v in given.items() if k in fixed.names("inner")}, path)
        eps = self._eps(given.get("eps", "threat"), (*path, "eps"))
        terms = self._inner_terms(id, primitive, given, path)
        surface = self._surface(primitive, given.get("surface"), (*path, "surface"))
        if options is None or table is None or eps is None:
            return None
        self._keep_use(path, primitive, options)
        for key, value in {**rebind, **table}.items():
            self.uses.keep((*path, key), value)
        return Inner(id, primitive.name, self.uses.settle(primitive, options), eps, table["bn"], terms, surface, rebind)

    def _inner_terms(self, id: str, primitive: Primitive, given: dict[str, Any], path: Dotted) -> tuple[Term, ...]:
        table = given.get("terms", {})
        here = (*path, "terms")
        if not isinstance(table, dict):
            self.problems.add(here, f"terms = {quote(table)}", why="a table is needed", fix="write terms = { ce = {} }")
            return ()
        climbs = primitive.flags.get("surface")
        if climbs and table:
            self.problems.add(here, f"inner '{primitive.name}' climbs a margin view, not terms", fix='write surface = { use = "margin_soft" } in their place')
        if not climbs and not table and id != "weights":
            self.problems.add(here, f"[inner.{id}] has no terms: there is nothing to climb", fix="add terms = { ce = {} }")
        self.uses.keep(here, {}) if id != "weights" or "terms" in given else None
        return self._each("terms", self._term, ID, here, table)

    def _surface(self, primitive: Primitive, given: Any, path: Dotted) -> Use | None:
        if not primitive.flags.get("surface"):
            if given is not None:
                self.problems.add(path, f"inner '{primitive.name}' climbs terms and takes no surface", fix="drop the key")
            return None
        table = {"use": given} if isinstance(given, str) else given
        if not isinstance(table, dict) or "use" not in table:
            self.problems.add(path, f"inner '{primitive.name}' needs a surface", why="a margin view whose zero is the boundary",
                              fix='write surface = { use = "margin_soft" }')
            return None
        return self._use("view", "view", "surface", table, path)

    def _eps(self, given: Any, path: Dotted) -> Any:
        """Number, pixel word, schedule, radius, or the name of an [N] tensor."""
        registry = self.registry
        if isinstance(given, dict):
            use = given.get("use")
            if isinstance(use, str) and registry.has("schedule", use) and not registry.has("radius", use):
                ref = self.uses.ref(("schedule",), given, path)
                if isinstance(ref, Ref):
                    self.uses.keep(path, ref)
                    return ref
                return None
            if isinstance(use, str) and registry.has("radius", use):
                return self._use("radius", "radius", "eps", given, path)
            self.problems.add((*path, "use"), f"eps = {quote(given)}", why="a table here uses a radius or a schedule",
                              fix=suggest(str(use), [*registry.names("radius"), *registry.names("schedule")], "radii and schedules"))
            return None
        if isinstance(given, str) and registry.has("radius", given):
            return self._use("radius", "radius", "eps", {"use": given}, path)
        value = self._eps_value(given, path)
        if value is not None:
            self.uses.keep(path, given if isinstance(given, str) else value)
        return value

    def _eps_value(self, given: Any, path: Dotted) -> float | str | None:
        value = self.uses.number("eps", given)
        if isinstance(value, str) and NAME.fullmatch(value) and value not in ("threat", "eps", "step"):
            return value
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0 or value == float("inf"):
            self.problems.add(path, f"eps = {quote(given)}", why="a radius is needed: a number >= 0, pixels in quotes, a table, or the name of an [N] tensor",
                              fix='write 0.03, "8/255", "threat/2", or { use = "…" }')
            return None
        return float(value)

    # -- across tables -------------------------------------------------------------------------------------------------------------

    def _labels(self) -> None:
        """Under a soft augmentation the labels are `y_soft`; a term that asks for `y` would silently train on other labels."""
        method = self.pieces.get("method")
        if method is None or not method.soft:
            return
        soft = [u.id for u in self.pieces["augment"] if self._soft(u)]
        groups = [(("terms",), method.terms), *((("inner", i.id, "terms"), i.terms) for i in method.inner)]
        for path, terms in groups:
            for term in terms:
                for use in [term, term.gain] if isinstance(term.gain, Use) else [term]:
                    needs = [n.name for n in self.registry.get(use.kind, use.use).needs]
                    if any(use.rebind.get(n, n) == "y" for n in needs):
                        self.problems.add((*path, term.id), f"term '{term.id}' needs the labels y",
                                          why=f"augment.{soft[0]} mixes labels: a batch has y_soft, not y", fix="use soft_ce, or drop the augmentation")

    def _search(self) -> None:
        self.pieces["search"] = check_search(self.table("search"), self.tables, self.problems, self.registry)
        self.pieces["analysis"], self.pieces["expect"] = self.table("analysis"), self.table("expect")


def plugin_names(registry: Registry) -> list[str]:
    """Plugins that have been loaded: what the loader says, and the files that primitives come from."""
    import sys

    plugins = sys.modules.get("composer.plugins")
    named = list(plugins.names()) if plugins and hasattr(plugins, "names") else []
    return sorted({*named, *(p.file.stem for p in registry.all() if p.file)})
