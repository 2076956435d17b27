"""The report page in a real browser, from its file: what a reader clicks and types, and that data stays data."""

import html
import io
import itertools
import json
import os
import re
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright
from torch import Tensor, nn

from factorized_moe import MuMoE
from factorized_moe.interpret import ExpertSpectra, Polysemanticity, Recording, record
from factorized_moe.interpret.report import Images, Patches, ReportData, Texts, report_json, report_page, write_report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.thorough,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium found; install Debian's package chromium"),
]

CLASSES = ("ant", "bee", "cow")
ATTACK = "<script>window.attacked = 1</script>"
ODD = (
    ATTACK,
    "<img src=x onerror='window.attacked = 1'>",
    "</script><script>window.attacked = 1</script>",
    "<!--<script>",
    "{{data}}",
    "&amp;",
    "مرحبا",
    "\u202e",
    "😀",
    "e\u0301",
    "a\u2028b\u2029c",
    "\ud800",
    "\x00",
    "null",
    "undefined",
    "NaN",
    "__proto__",
    "constructor",
    "",
    " ",
)


class InputAsCoefficients(nn.Module):
    """A gate that returns what it is given, so that any coefficients can be recorded."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (x,)


def recorded(coefficients: Tensor, labels: Tensor, classes: tuple[str, ...]) -> Recording:
    experts = coefficients.shape[1]
    head = MuMoE(experts, 1, [experts], rank=1, gate=InputAsCoefficients())
    with record(nn.ModuleDict({"head": head}), class_names=classes) as log:
        head(coefficients)
        log.annotate(labels=labels)
    return log.recording


def image_run(title: str, seed: int = 0, experts: int = 8, samples: int = 30) -> ReportData:
    """Expert ``n`` takes the samples ``n``, ``n + experts``, ..; a sample's label is its number modulo 3."""
    coefficients = torch.full((samples, experts), 0.001)
    coefficients[torch.arange(samples), torch.arange(samples) % experts] = torch.linspace(0.4, 0.99, samples)
    labels = torch.arange(samples) % 3
    generator = np.random.default_rng(seed)
    drop = torch.zeros(experts, 3, dtype=torch.float64)
    drop[torch.arange(experts - 1), torch.arange(experts - 1) % 3] = 0.25
    return ReportData.from_recording(
        recorded(coefficients, labels, CLASSES),
        title,
        inputs=Images(generator.integers(0, 255, (samples, 6, 5), dtype=np.uint8)),
        facts=[("Seed", str(seed)), ("Samples", str(samples))],
        effects={"head": Polysemanticity(drop, torch.where(drop.any(dim=1), 0.75, torch.nan))},
        spectra={"head": ExpertSpectra(torch.linspace(3, 1, 5).expand(experts, 5), (experts,))},
    )


def text_run() -> ReportData:
    """Two texts: words, and whatever could go wrong in a page; expert 0 is for the second."""
    texts = Texts([["Some", " plain", " words", "."], list(ODD)])
    coefficients = torch.full((len(texts), 4), 0.01)
    coefficients[:4, 1] = 0.9
    coefficients[4, 0] = 0.95
    labels = torch.tensor([1] * 4 + [0] * len(ODD))
    return ReportData.from_recording(
        recorded(coefficients, labels, (ATTACK, "__proto__")),
        f"Texts {ATTACK} &lt; \ud800 \u2028",
        inputs=texts,
        facts=[(ATTACK, ATTACK), ("", "null")],
        descriptions={"head": ATTACK},
    )


def patch_run() -> ReportData:
    """Two images of 2 x 3 patches after one token; expert 0 takes the second image's last patch, expert 1 its token."""
    patches = Patches(np.zeros((2, 20, 30), dtype=np.uint8), grid=(2, 3), prefix=1)
    coefficients = torch.full((14, 2), 0.01)
    coefficients[13, 0] = coefficients[7, 1] = 0.9
    return ReportData.from_recording(recorded(coefficients, torch.zeros(14).long(), ("x",)), "Patches", inputs=patches)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield running
        running.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """The addresses of one page of each kind, and the data of the first."""
    folder = tmp_path_factory.mktemp("pages")
    first, second = image_run("First"), image_run("Second", seed=1, experts=5)
    large = image_run("Large", experts=4096, samples=12)
    written = {
        "images": write_report(folder / "images.html", first),
        "compared": write_report(folder / "compared.html", first, compare=second),
        "texts": write_report(folder / "texts.html", text_run()),
        "large": write_report(folder / "large.html", large),
        "patches": write_report(folder / "patches.html", patch_run()),
    }
    parts = SimpleNamespace(first=first, second=second, folder=folder)
    vars(parts).update({name: path.as_uri() for name, path in written.items()})
    return parts


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page that must load nothing, log nothing and run into no error."""
    opened = browser.new_page(viewport={"width": 1280, "height": 800}, color_scheme="light")
    opened.set_default_timeout(10_000)
    noted: list[str] = []
    opened.on("console", lambda message: noted.append(f"console: {message.text}"))
    opened.on("pageerror", lambda error: noted.append(f"error: {error}"))
    local = ("data:", "file:", "about:")
    opened.on("request", lambda request: request.url.startswith(local) or noted.append(request.url))
    yield opened
    assert opened.evaluate("window.attacked") is None
    opened.close()
    assert noted == []


def experts(page: Page) -> list[int]:
    return [int(number) for number in page.locator("tbody th.first").all_inner_texts()]


def fragment(page: Page) -> str:
    return str(page.evaluate("location.hash"))


def test_overview_leads_to_the_list(page: Page, pages: SimpleNamespace) -> None:
    page.goto(pages.images)
    assert page.title() == "First"
    assert "8 experts in 1 layer, on 30 images" in page.inner_text("main")
    assert page.locator(".facts dd").all_inner_texts() == ["0", "30"]
    page.wait_for_selector(".chart svg[role=img]")
    share = round(100 * pages.first.layers[0].class_share[7, 1])
    assert page.locator(f".heat td[title='expert 7, bee: {share}%']").count() == 1
    page.get_by_role("link", name="All 8 experts").click()
    expect(page.locator("h1")).to_have_text("head")
    assert fragment(page) == "#/head?sort=-load"


def test_sorting(page: Page, pages: SimpleNamespace) -> None:
    page.goto(f"{pages.images}#/head")
    assert experts(page) == list(range(8))
    page.get_by_role("button", name="Max").click()
    assert experts(page) == [5, 4, 3, 2, 1, 0, 7, 6]
    assert page.locator("th[aria-sort=descending]").inner_text().startswith("Max")
    assert fragment(page) == "#/head?sort=-largest"
    page.get_by_role("button", name="Max").click()
    assert experts(page) == [6, 7, 0, 1, 2, 3, 4, 5]
    page.get_by_role("button", name="Polysem.").click()
    assert experts(page)[-1] == 7  # without a score
    page.get_by_role("button", name="Polysem.").click()
    assert experts(page)[-1] == 7


def test_searching(page: Page, pages: SimpleNamespace) -> None:
    page.goto(f"{pages.images}#/head")
    search = page.get_by_role("searchbox")
    search.fill("bee 4")
    assert experts(page) == [4]
    assert page.inner_text(".count") == "1 of 8 experts"
    assert fragment(page) == "#/head?q=bee+4"
    search.fill("zebra")
    assert experts(page) == []
    assert page.inner_text(".nothing") == "No expert matches zebra."
    search.press("Escape")
    assert experts(page) == list(range(8))
    assert search.input_value() == ""


def test_expert_and_back(page: Page, pages: SimpleNamespace) -> None:
    page.goto(f"{pages.images}#/head?sort=-largest&q=expert")
    page.locator("tr", has=page.get_by_role("link", name="2", exact=True)).locator("td.bar").click()
    expect(page.locator("h1")).to_have_text("Expert 2")
    assert page.title() == "Expert 2 · First"
    assert fragment(page) == "#/head/expert/2?sort=-largest&q=expert"
    shown = page.locator(".gallery li")
    assert shown.locator("img").first.get_attribute("alt") == "input 26, cow"
    assert shown.first.inner_text().split() == ["0.92", "cow"]
    assert page.locator(".gallery li.reached").count() == 3
    assert page.get_by_role("list", name="Accuracy lost in each class").inner_text().split()[-2:] == [
        "cow",
        "\u221225%",
    ]
    assert all(page.eval_on_selector_all("img", "all => all.map(img => img.naturalWidth === 5)"))
    page.get_by_role("link", name="Next").click()
    expect(page.locator("h1")).to_have_text("Expert 1")
    page.go_back()
    page.go_back()
    page.wait_for_selector("main[data-view=table]")
    assert page.get_by_role("searchbox").input_value() == "expert"
    assert experts(page)[:2] == [5, 4]
    assert page.evaluate("document.activeElement.textContent") == "2"


def test_keyboard_alone(page: Page, pages: SimpleNamespace) -> None:
    page.goto(pages.images)
    page.keyboard.press("Enter")
    page.wait_for_selector("main[data-view=table]")
    page.keyboard.press("/")
    page.keyboard.type("cow")
    found = experts(page)
    page.keyboard.press("Enter")
    page.keyboard.press("j")
    assert page.evaluate("document.activeElement.textContent") == str(found[1])
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Enter")
    page.wait_for_selector("main[data-view=expert]")
    expect(page.locator("h1")).to_have_text(f"Expert {found[0]}")
    page.keyboard.press("ArrowRight")
    expect(page.locator("h1")).to_have_text(f"Expert {found[1]}")
    page.keyboard.press("k")
    expect(page.locator("h1")).to_have_text(f"Expert {found[0]}")
    page.keyboard.press("?")
    assert page.get_by_role("dialog").is_visible()
    page.keyboard.press("Escape")
    assert not page.get_by_role("dialog").is_visible()
    page.keyboard.press("Escape")
    page.wait_for_selector("main[data-view=table]")
    assert experts(page) == found
    page.keyboard.press("Escape")  # the search
    assert experts(page) == list(range(8))
    page.keyboard.press("Escape")
    page.wait_for_selector("main[data-view=overview]")


def test_skip_link_comes_first(page: Page, pages: SimpleNamespace) -> None:
    page.goto(f"{pages.images}#/head")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    assert fragment(page) == "#/head"


def test_links_open_what_they_name(page: Page, pages: SimpleNamespace) -> None:
    headings = {
        "#/head/expert/5": "Expert 5",
        "#/head?sort=-mean&q=ant": "head",
        "#/head?sort=toString": "head",
        "#/head/expert/8": "Not here",
        "#/head/expert/-1": "Not here",
        "#/other": "Not here",
        "#/~compare": "Not here",
        "#/__proto__": "Not here",
        "#/%": "Not here",
    }
    for address, heading in headings.items():
        page.goto("about:blank")  # so that the next page is opened, not moved within
        page.goto(pages.images + address)
        expect(page.locator("h1"), address).to_have_text(heading)


def test_comparison(page: Page, pages: SimpleNamespace) -> None:
    page.goto(pages.compared)
    page.get_by_role("link", name="Compare").click()
    page.wait_for_selector("main[data-view=compare]")
    facts = page.get_by_role("table", name="Facts").locator("tbody tr")
    assert [row.inner_text().split() for row in facts.all()] == [["Seed", "0", "1"], ["Samples", "30", "30"]]
    assert [row.get_attribute("class") for row in facts.all()] == [None, "same"]
    page.get_by_role("button", name="Match").click()
    assert fragment(page) == "#/~compare?sort=-match"
    row = page.get_by_role("table", name="Nearest experts").locator("tbody tr").nth(1)
    nearest = row.locator("td.number a").inner_text()
    row.locator("td.number a").click()
    expect(page.locator("h1")).to_have_text(f"Expert {nearest}")
    assert fragment(page) == f"#/~other/head/expert/{nearest}"
    page.get_by_role("link", name="First run").click()
    expect(page.locator("h1")).to_have_text("First")


def test_dark_and_light(page: Page, pages: SimpleNamespace) -> None:
    def background() -> str:
        return str(page.evaluate("getComputedStyle(document.body).backgroundColor"))

    page.goto(pages.images)
    light = background()
    page.get_by_role("button", name="Dark or light").click()
    dark = background()
    assert dark != light
    page.reload()
    assert background() == dark
    page.keyboard.press("d")
    assert background() == light
    page.evaluate("localStorage.clear()")
    page.emulate_media(color_scheme="dark")
    page.reload()
    assert background() == dark


def test_odd_text_is_shown_as_it_is(page: Page, pages: SimpleNamespace) -> None:
    page.goto(pages.texts)
    assert page.locator("h1").evaluate("node => node.textContent").startswith(f"Texts {ATTACK} &lt; ")
    assert page.locator(".facts dt").first.inner_text() == ATTACK
    page.goto(f"{pages.texts}#/head/expert/0")
    tokens = page.locator(".snippet").first.locator("span, mark").evaluate_all("all => all.map(x => x.textContent)")
    assert len(tokens) == 13  # the top token, the first of its text, and twelve to its right
    assert tokens[:10] == [*ODD[:10]]
    assert tokens[10:] == ["a⏎b⏎c", "\ud800", "\x00"]
    assert page.locator(".snippet mark").first.inner_text() == ATTACK
    assert page.locator("script").count() == 2
    shades = (
        page.locator(".snippet")
        .first.locator("span, mark")
        .evaluate_all("all => all.map(x => Number(getComputedStyle(x).backgroundColor.match(/[\\d.]+(?=\\))/)[0]))")
    )
    assert shades[0] == pytest.approx(0.6 * 0.95, abs=0.01)
    assert shades[1] == pytest.approx(0.6 * 0.01, abs=0.01)
    page.goto(f"{pages.texts}#/head?q=onerror")
    assert "of 4 experts" in page.inner_text(".count")
    page.goto(f"{pages.texts}#/head?sort=label&q=__proto__")
    assert 1 in experts(page)


def test_thousands_of_experts(page: Page, pages: SimpleNamespace) -> None:
    page.goto(f"{pages.large}#/head")
    assert page.inner_text(".count") == "4,096 experts"
    assert page.get_by_role("table").get_attribute("aria-rowcount") == "4097"
    assert len(experts(page)) < 100
    page.keyboard.press("End")
    assert page.evaluate("document.activeElement.textContent") == "4095"
    assert len(experts(page)) < 100
    page.get_by_role("button", name="Load").click()
    page.get_by_role("searchbox").fill("4000")
    assert experts(page) == [4000]


VIEWS = ["#/", "#/head?sort=-load", "#/head/expert/0", "#/~compare", "#/~other/head"]


@pytest.mark.parametrize("kind", ["compared", "texts"])
def test_phones_need_no_sideways_scrolling(page: Page, pages: SimpleNamespace, kind: str) -> None:
    page.set_viewport_size({"width": 390, "height": 800})
    for view in VIEWS:
        page.goto(getattr(pages, kind) + view)
        page.wait_for_selector("h1")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, view


def many_classes() -> ReportData:
    """Every expert has a fiftieth of each class, and the classes are 50."""
    names = tuple(f"a class with the long name {n}" for n in range(50))
    data = recorded(torch.full((50, 30), 0.9), torch.arange(50), names)
    pixels = np.zeros((50, 6, 6), dtype=np.uint8)
    return ReportData.from_recording(data, "Many", inputs=Images(pixels))


def test_heat_map_has_equal_columns_and_a_scale(page: Page, pages: SimpleNamespace) -> None:
    page.goto(write_report(pages.folder / "many.html", many_classes()).as_uri())
    widths = page.eval_on_selector_all(".heat tbody tr:first-child td", "all => all.map(x => x.offsetWidth)")
    assert max(widths) - min(widths) <= 1
    assert page.get_by_role("img", name="Shades from 0% to 2%").count() == 1
    shade = page.eval_on_selector(".heat tbody td", "cell => getComputedStyle(cell).backgroundColor")
    assert float(shade.split()[-1].rstrip(")")) == pytest.approx(0.9, abs=0.01)  # the whole shade, of two percent


def test_long_captions_move_nothing(page: Page, pages: SimpleNamespace) -> None:
    for width in (1280, 390):
        page.set_viewport_size({"width": width, "height": 800})
        page.goto(f"{write_report(pages.folder / 'many.html', many_classes()).as_uri()}#/head/expert/0")
        rows = page.eval_on_selector_all(".gallery img", "all => all.map(x => x.getBoundingClientRect().top)")
        columns = page.evaluate("getComputedStyle(document.querySelector('.gallery')).gridTemplateColumns").split()
        assert len(set(rows)) == -(-len(rows) // len(columns))
        labels = page.locator(".gallery .label")
        assert max(labels.evaluate_all("all => all.map(x => x.offsetHeight)")) <= 2 * 1.4 * 13 + 1  # two lines
        names = {f"a class with the long name {n}" for n in range(50)}
        assert {label.get_attribute("title") for label in labels.all()} <= names


@pytest.mark.parametrize("kind", ["images", "texts", "compared"])
def test_accessibility_tree(page: Page, pages: SimpleNamespace, kind: str) -> None:
    for view in ("#/", "#/head", "#/head/expert/0", "#/~compare"):
        page.goto("about:blank")
        page.goto(getattr(pages, kind) + view)
        levels = page.eval_on_selector_all("main :is(h1, h2, h3)", "all => all.map(x => Number(x.tagName[1]))")
        assert levels[0] == 1
        assert all(after - before <= 1 for before, after in itertools.pairwise(levels)), (view, levels)
        names = page.eval_on_selector_all("dl > div", "all => all.map(x => [...x.children].map(y => y.tagName).join())")
        assert set(names) <= {"DT,DD"}
    page.goto("about:blank")
    page.goto(f"{getattr(pages, kind)}#/head/expert/0")
    tree = page.locator("main").aria_snapshot()
    assert tree.index("term: mean coefficient") < tree.index("definition", tree.index("term: mean coefficient"))


def test_coefficients_of_tokens_as_numbers(page: Page, pages: SimpleNamespace) -> None:
    page.goto(f"{pages.texts}#/head/expert/1")
    assert page.locator(".snippet sub").count() == 0
    page.keyboard.press("n")
    button = page.get_by_role("button", name="Numbers", pressed=True)
    assert page.locator(".snippet").first.locator("sub").all_inner_texts() == ["0.90"] * 4
    assert "0.90" in page.locator(".snippet").first.aria_snapshot()
    button.click()
    assert page.locator(".snippet sub").count() == 0


def test_context_is_lengthened_on_demand(page: Page, pages: SimpleNamespace) -> None:
    texts = Texts([[f"t{n} " for n in range(60)]])
    coefficients = torch.full((60, 1), 0.01)
    coefficients[30] = 0.9
    data = ReportData.from_recording(
        recorded(coefficients, torch.zeros(60).long(), ("x",)), "Long", inputs=texts, context=20
    )
    page.goto(f"{write_report(pages.folder / 'long.html', data).as_uri()}#/head/expert/0")
    tokens = page.locator(".snippet").locator("span, mark")
    assert tokens.count() == 25
    page.get_by_role("button", name="More context").click()
    assert (tokens.count(), tokens.first.inner_text().strip()) == (41, "t10")
    assert page.evaluate("document.activeElement.textContent") == "Less"
    page.keyboard.press("Enter")
    assert tokens.count() == 25


def test_printed_list_is_short_and_full(page: Page, pages: SimpleNamespace) -> None:
    page.goto(f"{pages.large}#/head")
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert experts(page) == list(range(200))
    assert page.locator("tbody .spacer").count() == 0
    assert page.get_by_text("The first 200 of 4,096 experts").is_visible()
    page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert page.locator("tbody .spacer").count() == 2
    assert page.pdf().count(b"/Type /Page\n") in range(4, 9)  # about thirty rows a page
    page.goto("about:blank")
    page.goto(f"{pages.images}#/head/expert/0")
    assert page.pdf().count(b"/Type /Page\n") <= 2


@pytest.mark.parametrize("chosen", [False, True], ids=["the system's", "the reader's"])
@pytest.mark.parametrize("view", ["#/", "#/head?sort=-load", "#/head/expert/0", "#/~compare"])
def test_paper_is_light(page: Page, pages: SimpleNamespace, chosen: bool, view: str) -> None:
    """Whether the system is dark or the reader has chosen it: white behind nearly black, as seen and as styled."""
    page.emulate_media(color_scheme="light" if chosen else "dark")
    page.goto(f"{pages.compared}{view}")
    page.wait_for_selector("h1")
    if chosen:
        page.keyboard.press("d")
    assert brightness(page) < 60  # it is dark on the screen
    page.emulate_media(media="print", color_scheme="light" if chosen else "dark")
    assert brightness(page) > 180  # pictures are as dark as they are
    styles = page.eval_on_selector_all(
        "main, main :is(h1, h2, p, td, th, dt, dd, a, li, section, .panel)",
        """all => all.map(x => {
            const { color, backgroundColor } = getComputedStyle(x);
            return [color, backgroundColor, x.closest('.heat') !== null];
        })""",
    )
    assert max(sum(rgb(text)[:3]) / 3 for text, _, _ in styles) < 130
    grounds = [rgb(ground) for _, ground, heat in styles if not heat]
    assert all(sum(ground[:3]) / 3 > 230 for ground in grounds if len(ground) == 3 or ground[3] > 0)


def rgb(colour: str) -> list[float]:
    """The numbers of a colour as a browser writes it: red, green, blue, and opacity below 1."""
    return [float(number) for number in colour[colour.index("(") + 1 : -1].replace(",", " ").replace("/", " ").split()]


def test_a_printed_list_has_all_its_columns(page: Page, pages: SimpleNamespace) -> None:
    """A page of A4 is narrower than most screens, and has room for them."""
    page.set_viewport_size({"width": 688, "height": 900})
    page.goto(f"{pages.images}#/head?sort=-load")
    page.emulate_media(media="print")
    headers = page.locator(".list thead th")
    assert all(header.is_visible() for header in headers.all())
    assert headers.count() == 9
    edges = headers.evaluate_all(
        "all => all.map(x => [x.getBoundingClientRect().left, x.getBoundingClientRect().right])"
    )
    assert edges[-1][1] <= 688
    cells = page.locator(".list tbody tr").first.locator("td.number > div")
    assert all(cells.evaluate_all("all => all.map(x => x.scrollWidth <= x.clientWidth)"))
    assert page.locator(".list thead th").first.get_by_role("button").aria_snapshot() == '- button "Expert"'


def test_every_sheet_of_a_printed_list_has_the_whole_head(page: Page, pages: SimpleNamespace) -> None:
    """Buttons in it print as text in it does: on all sheets."""
    page.goto(f"{pages.large}#/head")
    sheets = texts_of_sheets(page.pdf())
    assert len(sheets) >= 4
    page.evaluate("document.querySelectorAll('.list thead button').forEach(x => x.replaceWith(x.textContent))")
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    page.evaluate("document.querySelectorAll('.list thead button').forEach(x => x.replaceWith(x.textContent))")
    assert [texts + 1 for texts in texts_of_sheets(page.pdf())] == sheets  # the arrow at what is sorted by


def texts_of_sheets(pdf: bytes) -> list[int]:
    """How many pieces of text the content of each sheet shows."""
    streams = [zlib.decompress(part) for part in re.findall(rb"stream\r?\n(x.*?)\r?\nendstream", pdf, re.DOTALL)]
    return [len(re.findall(rb"T[jJ]\n", stream)) for stream in streams if b"\nBT\n" in stream]


def test_long_numbers_of_a_printed_heat_map_do_not_overlap(page: Page, tmp_path: Path) -> None:
    experts = 1000 + 200 * torch.arange(36)
    coefficients = torch.zeros(36, 8200)
    coefficients[torch.arange(36), experts] = 0.9
    run = ReportData.from_recording(recorded(coefficients, torch.arange(36) % 3, CLASSES), "Many")
    page.goto(f"{write_report(tmp_path / 'many.html', run).as_uri()}#/")
    page.set_viewport_size({"width": 688, "height": 900})
    page.emulate_media(media="print")
    edges = page.locator(".heat thead a").evaluate_all(
        "all => all.map(x => [x.getBoundingClientRect().left, x.getBoundingClientRect().right])"
    )
    assert len(edges) == 36
    assert all(right <= left for (_, right), (left, _) in itertools.pairwise(edges))
    assert edges[-1][1] <= 688


def test_small_means_are_told_apart(page: Page, tmp_path: Path) -> None:
    """On the screen, and on paper within their column."""
    coefficients = torch.zeros(5000, 2)
    coefficients[0, 0], coefficients[:3, 1] = 0.6, 0.6
    run = ReportData.from_recording(recorded(coefficients, torch.zeros(5000).long(), ("x",)), "Small means")
    page.goto(f"{write_report(tmp_path / 'small.html', run).as_uri()}#/head")
    column = page.locator(".list thead th").all_inner_texts().index("Mean") + 1
    cells = page.locator(f".list tbody tr:not(.spacer) > :nth-child({column})")
    assert cells.all_inner_texts() == ["1.2e-4", "3.6e-4"]
    page.set_viewport_size({"width": 688, "height": 900})
    page.emulate_media(media="print")
    assert all(cells.locator("div").evaluate_all("all => all.map(x => x.scrollWidth <= x.clientWidth)"))
    page.goto(f"{page.url}/expert/0")
    assert "1.2e-4" in page.inner_text("main")


def test_a_share_of_nearly_all_is_not_all(page: Page, tmp_path: Path) -> None:
    """Of 1,000 experts 999 reach the threshold; and a million coefficients are written short."""
    coefficients = torch.full((1200, 1000), 0.1)
    coefficients[torch.arange(1200), torch.arange(1200) % 999] = 0.9
    run = ReportData.from_recording(recorded(coefficients, torch.arange(1200) % 3, CLASSES), "Nearly")
    page.goto(f"{write_report(tmp_path / 'nearly.html', run).as_uri()}#/")
    assert "999 (99%)" in page.inner_text("main")
    assert "1M" in page.locator("svg text").all_text_contents()


def brightness(page: Page) -> float:
    """The mean of all pixels in view, 0 to 255."""
    with Image.open(io.BytesIO(page.screenshot())) as picture:
        return float(np.asarray(picture.convert("L")).mean())


@pytest.mark.parametrize("kind", ["compared", "texts", "patches"])
def test_download_is_what_python_writes(page: Page, pages: SimpleNamespace, kind: str) -> None:
    page.goto(getattr(pages, kind))
    with page.expect_download() as download:
        page.get_by_role("button", name="Save the data").click()
    given = {
        "compared": lambda: report_json(pages.first, pages.second),
        "texts": lambda: report_json(text_run()),
        "patches": lambda: report_json(patch_run()),
    }
    assert json.loads(download.value.path().read_text(encoding="utf-8")) == json.loads(given[kind]())
    title = json.loads(given[kind]())["runs"][0]["title"]
    assert download.value.suggested_filename == "-".join(re.findall("[a-z0-9]+", title.lower())) + ".json"


@pytest.mark.parametrize("sandbox", ["", 'sandbox="allow-scripts"'])
def test_inside_a_notebooks_frame(page: Page, pages: SimpleNamespace, sandbox: str) -> None:
    """As `IPython.display.HTML` and others embed a page: the frame has no address of its own."""
    outer = pages.folder / "notebook.html"
    inner = html.escape(report_page(pages.first))
    outer.write_text(f'<title>A notebook</title><iframe {sandbox} width=1000 height=700 srcdoc="{inner}"></iframe>')
    page.goto(outer.as_uri())
    frame = page.frame_locator("iframe")
    frame.get_by_role("link", name="All 8 experts").click()
    expect(frame.locator("h1")).to_have_text("head")
    frame.get_by_role("searchbox").fill("cow")
    expect(frame.locator(".count")).to_have_text("3 of 8 experts")
    frame.locator("tbody th a").first.click()
    expect(frame.locator("h1")).to_have_text("Expert 5")
    assert (page.title(), page.url) == ("A notebook", outer.as_uri())


def test_a_frame_is_about_the_patch(page: Page, pages: SimpleNamespace) -> None:
    page.goto(f"{pages.patches}#/head/expert/0")
    first = page.locator(".gallery li").first
    assert first.locator("img").get_attribute("alt") == "patch in row 2, column 3 of input 1, x"
    image, frame = first.locator("img").bounding_box(), first.locator(".frame").bounding_box()
    assert frame["x"] - image["x"] == pytest.approx(image["width"] * 2 / 3, abs=1)
    assert frame["y"] - image["y"] == pytest.approx(image["height"] / 2, abs=1)
    assert (frame["width"], frame["height"]) == pytest.approx((image["width"] / 3, image["height"] / 2), abs=1)
    assert page.locator(".gallery li").count() == 2  # one patch of each image
    page.goto(f"{pages.patches}#/head/expert/1")
    assert page.locator(".gallery .frame").first.is_hidden()
    assert page.locator(".gallery li").first.inner_text().split("\n")[-1] == "no patch"


def test_equal_inputs_are_said_to_be_drawn(page: Page, pages: SimpleNamespace) -> None:
    coefficients = torch.stack([torch.full((50,), 0.25), torch.linspace(0.1, 0.9, 50)], dim=1)
    coefficients[:20, 0] = 1.0
    data = ReportData.from_recording(recorded(coefficients, torch.zeros(50).long(), ("x",)), "Equal")
    page.goto(f"{write_report(pages.folder / 'equal.html', data).as_uri()}#/head/expert/0")
    note = page.locator(".panel .note").first
    assert "Of 20 inputs with a coefficient of 1.00, 12 are drawn at random." in note.inner_text()
    assert json.loads(report_json(data))["runs"][0]["layers"][0]["experts"][0]["top_equal"] == 20
    page.goto("about:blank")
    page.goto(f"{(pages.folder / 'equal.html').as_uri()}#/head/expert/1")
    assert "drawn" not in note.inner_text()
