"""The page in a headless Chromium: what is typed, dropped, banned, boosted, and what goes wrong."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="needs the server: pip install 'lexvla[serve]'")
pytest.importorskip("selenium", reason="needs selenium: pip install selenium")

from PIL import Image
from selenium.webdriver import ActionChains, Keys

from lexvla_search.api import Settings, create_app
from lexvla_search.api.keys import make_key
from page_fakes import Page, Rehearsed, build_spots, missing, serving, start_chromium
from search_fakes import WORDS, MappingEncoder

pytestmark = [
    pytest.mark.chromium,
    pytest.mark.skipif(missing() is not None, reason=missing() or ""),
]

HALVES = Image.new("RGB", (120, 80), "red")
HALVES.paste("lime", (60, 0, 120, 80))  # (0, 255, 0), which the encoder calls green


@pytest.fixture(scope="module")
def spots(tmp_path_factory: pytest.TempPathFactory) -> str:
    return build_spots(tmp_path_factory.mktemp("spots"))


@pytest.fixture(scope="module")
def app(spots: str) -> Rehearsed:
    settings = Settings(spots, images=(Path(spots).parent / "pictures",))
    return Rehearsed(create_app(settings, MappingEncoder()))


@pytest.fixture(scope="module")
def shared(app: Rehearsed) -> Iterator[Page]:
    driver = start_chromium()
    try:
        with serving(app) as address:
            yield Page(driver, address)
    finally:
        driver.quit()


@pytest.fixture
def page(shared: Page, app: Rehearsed) -> Iterator[Page]:
    shared.look(1280, 900)
    shared.driver.get("about:blank")
    shared.complaints(), shared.requested()
    yield shared
    assert shared.complaints() == []
    app.answers.clear()


def by_colour(ids: list[str]) -> list[str]:
    return sorted({name.partition("-")[0] for name in ids})


def test_typing_finds_and_the_link_says_what_was_asked(page: Page) -> None:
    page.open()
    assert page.focused().get_attribute("id") == "text"
    page.search("red")
    assert page.ids() == ["note/1", *(f"red-{n:02}" for n in range(12))]
    assert page.text("#status").startswith("13 hits · ")
    assert page.link() == "?q=red"
    assert page.driver.title == "red – LexVLA"
    card = page.one('#hits li[data-id="red-00"] .card')
    assert card.accessible_name == "red spot 0 by red"
    assert page.text('#hits li[data-id="red-00"] .score') == "score 0.354"
    page.until(lambda: page.all('#hits li[data-id="red-00"] img'))
    note = page.one('#hits li[data-id="note/1"] .card')
    assert note.accessible_name.endswith("by red, “red”")
    assert "A note about red." in page.text('#hits li[data-id="note/1"] .view')


def test_it_opens_on_a_sample_and_words_to_try(page: Page) -> None:
    page.open()
    assert page.text("#status") == "Some of 62 items"
    assert len(page.ids()) == 24 and len(by_colour(page.ids())) == 5  # from all over the index
    assert page.texts("#hits .score") == [""] * 24
    page.until(lambda: page.all('#hits li[data-id="blue-00"] img'))
    tried = page.until(lambda: page.texts("#examples button"))
    assert len(set(tried)) == len(tried) and set(tried) <= set(WORDS)
    page.press("#examples button")
    assert page.link() == f"?q={tried[0]}" and page.one("#text").get_property("value") == tried[0]
    assert len(page.ids()) >= 12 and not page.one("#examples").is_displayed()


def test_it_opens_empty_on_an_engine_that_cannot_list(
    page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lexvla_search.api.index_routes.fields_of", lambda index: None)
    page.open()
    assert page.ids() == [] and page.text("#status") == "" and page.text("#message") == ""
    page.search("red")
    assert len(page.ids()) == 13 and not page.one("#facets").is_displayed()


def test_facets_narrow_down_and_are_taken_back(page: Page) -> None:
    page.open("?q=black")
    counts = page.texts("#facets [data-field=colour] .facet")
    assert counts == ["blue12", "green12", "red12", "white12", "yellow12"]
    assert page.texts("#facets [data-field=price] .name") == [
        "under 5",
        "5 to under 10",
        "10 or more",
    ]
    assert not page.all("#facets [data-field=label]")  # each value has one item
    page.press("#facets [data-field=colour] li:nth-child(3) button")
    assert by_colour(page.ids()) == ["red"] and len(page.ids()) == 12
    assert page.chips() == ["colour: red"]
    assert page.link() == '?q=black&only=["colour","red"]'
    pressed = page.focused()
    assert pressed.text == "red\n12" and pressed.get_attribute("aria-pressed") == "true"
    assert page.texts("#facets [data-field=price] .facet") == [
        "under 55",
        "5 to under 105",
        "10 or more2",
    ]
    page.press("#facets [data-field=price] li:nth-child(2) button")
    assert page.ids() == [f"red-{n:02}" for n in range(5, 10)]
    assert page.chips() == ["colour: red", "price: 5 to under 10"]
    page.driver.refresh()
    page.settle()
    assert page.ids() == [f"red-{n:02}" for n in range(5, 10)]
    page.press("#facets [data-field=colour] [aria-pressed=true]")
    assert len(by_colour(page.ids())) == 5
    page.press("#chips .filter button")
    assert page.link() == "?q=black"
    page.press("#facets [data-field=row] button")  # a number with few values: its values
    page.search("")
    assert page.text("#status").startswith("20 items")  # without words, all that it narrows down to


def test_similar_items(page: Page) -> None:
    page.open("?q=black&only=%5B%22row%22%2C0%5D&ban=white")
    page.press('#hits li[data-id="red-01"] .similar')
    assert page.link() == '?similar=red-01&only=["row",0]'  # another search, narrowed down alike
    assert page.chips() == ["similar to red spot 1", "row: 0"]
    assert page.ids()[:3] == ["red-00", "red-02", "red-03"]
    page.open_hit("red-02")
    page.press("#detail .similar")
    assert page.chips()[0] == "similar to red spot 2"
    page.press("#chips .similar button")
    assert page.link() == '?only=["row",0]'


def test_names_break_after_their_separators(page: Page) -> None:
    for name, broken in {
        "a/b_c-d.png": "a/|b_|c-|d.|png",
        "2024-06-01": "2024-|06-|01",
        "plain words": "plain words",
        "--x--": "--x--",
    }.items():
        page.open(f'?only=["colour","{name}"]')
        shown = page.one("#chips .name").get_attribute("innerHTML")
        assert shown.replace("<wbr>", "|") == broken


def test_a_page_asks_for_nothing_elsewhere_and_runs_nothing_inline(page: Page) -> None:
    page.open("?q=red")
    page.open_hit("red-00")
    page.until(lambda: page.all("#detail .view img"))
    asked = [url for url in page.requested() if url != "about:blank"]
    assert any("/v1/search" in url for url in asked)
    own = (page.address, f"blob:{page.address}")
    assert [url for url in asked if not url.startswith(own)] == []
    assert page.all("[style], [onclick], style") == [
        element for element in page.all("[style]") if element.get_attribute("class") == "filled"
    ]
    inline = "const s = document.createElement('script'); s.text = 'window.ran = 1'"
    with pytest.raises(Exception, match="TrustedScript"):
        page.driver.execute_script(f"{inline}; document.body.append(s)")
    assert all("TrustedScript" in complaint for complaint in page.complaints())


def test_more_hits_are_added_below(page: Page) -> None:
    page.open("?q=black")
    first = page.ids()
    assert len(first) == 24
    assert page.text("#status").startswith("The best 24 of 62 items")
    page.one("#more").click()
    page.until(lambda: len(page.ids()) == 48)
    assert page.ids()[:24] == first
    assert len(set(page.ids())) == 48
    page.one("#more").click()
    page.until(lambda: len(page.ids()) == 60)
    page.until(lambda: not page.one("#more").is_displayed())


def test_minus_bans_a_word_and_a_chip_takes_that_back(page: Page) -> None:
    page.open("?q=black")
    assert "blue" in by_colour(page.ids())
    page.open_hit("blue-00")
    assert page.text("#detail-title") == "blue spot 0"
    assert page.texts("#detail [aria-label='Words that matched'] .name") == ["black"]
    page.until(lambda: page.texts("#detail [aria-label='Its other words'] .name") == ["blue"])
    assert page.text("#detail li[data-word=blue] .ban") == "−ban"
    page.press("#detail li[data-word=blue] .ban")
    assert page.chips() == ["blue banned"]
    assert page.link() == "?q=black&ban=blue"
    assert "blue" not in by_colour(page.ids())
    assert not page.one("#detail").is_displayed()
    assert "no longer among them" in page.text("#status")
    page.press("#chips li[data-word=blue] button")
    assert page.link() == "?q=black" and "blue" in by_colour(page.ids())


def test_plus_boosts_a_word(page: Page) -> None:
    page.open("?q=red+blue")
    before = page.text('#hits li[data-id="blue-00"] .score')
    page.open_hit("blue-00")
    assert page.text("#detail li[data-word=blue] .boost") == "+boost"
    page.press("#detail li[data-word=blue] .boost")
    assert page.chips() == ["blue × 2"]
    assert page.link() == "?q=red+blue&boost=blue:2"
    assert page.ids()[0] == "hostile" and by_colour(page.ids()[1:14]) == ["blue", "note/1"]
    assert page.text('#hits li[data-id="blue-00"] .score') > before
    assert page.one("#detail").is_displayed()  # still a hit: still open, with its new parts
    page.press("#detail li[data-word=blue] .boost")
    assert page.chips() == ["blue × 4"]
    page.press("#asked li[data-word=red] .ban")
    assert page.chips() == ["blue × 4", "red banned"]
    assert "red" not in by_colour(page.ids())


def test_the_parts_of_the_score_and_where_a_word_was_read(page: Page) -> None:
    page.open("?q=red")
    page.open_hit("red-03")
    page.until(lambda: page.all("#detail .view img"))
    assert page.texts("#detail .parts tbody tr:last-child td")[-1] == "0.3536"
    assert page.texts("#detail .parts tbody tr:first-child *") == ["words", "0.707", "5", "0.3536"]
    assert page.focused().get_attribute("id") == "detail-title"
    word, text = page.one("#detail li[data-word=red] .word"), page.one("#text")
    ActionChains(page.driver).move_to_element(word).perform()  # only as long as it is pointed at
    heat = page.until(lambda: page.all("#detail .heat"))[0]
    assert heat.accessible_name == "Where red was read"
    assert page.text("#detail .caption") == "Where “red” was read"
    page.until(lambda: heat.get_property("naturalWidth") >= 384)
    ActionChains(page.driver).move_to_element(text).perform()
    page.until(lambda: not page.all("#detail .heat"))
    word.click()  # and on from there if it is pressed
    page.until(lambda: page.all("#detail .heat"))
    assert word.get_attribute("aria-pressed") == "true"
    black = page.until(lambda: page.all("#detail li[data-word=black] .word"))[0]
    ActionChains(page.driver).move_to_element(black).perform()
    page.until(lambda: page.text("#detail .caption") == "Where “black” was read")
    ActionChains(page.driver).move_to_element(text).perform()
    page.until(lambda: page.text("#detail .caption") == "Where “red” was read")
    word.send_keys(Keys.ENTER)
    page.until(lambda: not page.all("#detail .heat"))
    assert word.get_attribute("aria-pressed") == "false" and page.link() == "?q=red"


def test_an_image_is_dropped_and_searched_by_a_region(page: Page) -> None:
    page.open()
    page.bring(HALVES, "drop")
    assert page.text("#picture-title") == "brought.png"
    assert {"green", "red"} <= set(by_colour(page.ids()))
    assert page.link() == ""  # the image is no part of the link
    page.until(lambda: page.one("#region").is_enabled())
    stage = page.one("#stage")
    width, height = stage.size["width"], stage.size["height"]
    drag = ActionChains(page.driver).move_to_element_with_offset(
        stage, width // 4 - 20, 10 - height // 2
    )
    drag.click_and_hold().move_by_offset(30, 40).move_by_offset(0, height // 2).release().perform()
    page.settle()
    assert by_colour(page.ids()) == ["green"]
    region = [int(field.get_property("value")) for field in page.all("#region input")]
    left, top, across, down = region
    assert left >= 60 and left + across <= 120 and top + down <= 80
    page.press("#whole")
    assert "red" in by_colour(page.ids())
    page.driver.back()
    page.until(lambda: by_colour(page.ids()) == ["green"])
    page.press("#no-image")
    assert page.text("#status") == "Some of 62 items" and not page.one("#picture").is_displayed()


def test_an_image_is_pasted_and_its_region_typed(page: Page) -> None:
    page.open()
    page.bring(HALVES, "paste")
    page.until(lambda: page.one("#region").is_enabled())
    values = [field.get_property("value") for field in page.all("#region input")]
    assert values == ["0", "0", "120", "80"]
    field = page.one("#region [name=width]")
    assert field.accessible_name == "Width"
    field.send_keys(Keys.CONTROL, "a")
    field.send_keys("50\n")
    page.settle()
    assert by_colour(page.ids()) == ["note/1", "red"]


def test_words_are_completed_and_required(page: Page) -> None:
    page.open("?q=black")
    page.one("#options summary").click()
    page.one("#word").send_keys("ye")
    page.until(lambda: page.texts("#completions li") == ["yellow"])
    assert page.one("#word").get_attribute("aria-expanded") == "true"
    page.one("#word").send_keys(Keys.ARROW_DOWN)
    assert page.one("#word").get_attribute("aria-activedescendant") == "completion-0"
    page.one("#word").send_keys(Keys.ENTER)
    assert page.one("#word").get_property("value") == "yellow"
    assert not page.one("#completions").is_displayed()
    page.press("[data-way=require]")
    assert page.chips() == ["yellow required"]
    assert by_colour(page.ids()) == ["yellow"]
    assert page.link() == "?q=black&require=yellow"


def test_filters_are_typed_clicked_and_refused(page: Page) -> None:
    page.open("?q=black")
    page.one("#options summary").click()
    page.one("#filter").send_keys("colour in (red, green)\n")
    page.settle()
    assert by_colour(page.ids()) == ["green", "red"]
    page.open_hit("green-04")
    page.press("#detail [aria-label='Only row 1']")
    assert page.chips() == ["row: 1", "only colour in (red, green)"]
    assert page.ids() == [f"{c}-{n:02}" for c in ("green", "red") for n in range(4, 8)]
    page.one("#filter").send_keys(" and\n")
    page.settle()
    assert page.ids() == [] and page.text("#message h2") == "The filter cannot be read"
    assert page.one("#filter").get_attribute("aria-invalid") == "true"
    assert "column" in page.text("#filter-error")
    for _ in range(2):
        page.press("#chips .filter button")
    assert len(page.ids()) == 24 and page.text("#filter-error") == ""


def test_no_hits_and_unknown_words_say_what_to_do(page: Page) -> None:
    page.open("?q=black+blue&ban=blue&require=red&filter=row+%3D+7")
    assert page.ids() == []
    assert page.texts("#hits p") == ["Remove a banned or required word.", "Loosen the filter."]
    page.open('?q=red&filter=colour+%3D+"grey"')
    assert page.ids() == [] and page.text("#status") == "No hits."
    assert page.text("#hits") == "Loosen the filter."
    page.open("?q=red&boost=zebra:2")
    assert page.text("#message h2") == "This cannot be searched for"
    assert "zebra" in page.text("#message .problem")
    page.press("#chips li[data-word=zebra] button")
    assert len(page.ids()) == 13 and page.text("#message") == ""


def test_the_end_of_a_text_that_is_too_long_is_named(page: Page) -> None:
    page.open("?q=" + "red+" * 250 + "blue")
    assert page.text("#unknown") == "The text is too long: its end, “blue”, is not read."
    page.search("red")
    assert page.text("#unknown") == ""


def test_unknown_words_are_named_and_a_click_asks_for_what_was_meant(page: Page) -> None:
    page.open("?q=a+zebra")
    assert page.ids() == [] and page.text("#status") == "No hits."
    assert page.text("#unknown") == "No such word: zebra."
    assert page.text("#hits") == "No word of the query is known."
    page.search("a note")  # which only a text has
    assert page.ids() == ["note/1"] and page.text("#unknown").startswith("No such word: note.")
    page.open_hit("note/1")
    assert page.text("#detail").count("In its text: note 0.602") == 1
    page.search("Gren or grens and yellwo")
    assert page.texts("#unknown p") == [
        "No such word: Gren. Did you mean green?",
        "No such word: grens. Did you mean green?",
        "No such word: yellwo. Did you mean yellow?",
    ]
    page.press("#unknown p:nth-child(1) button")
    assert page.link() == "?q=green+or+grens+and+yellwo"
    assert by_colour(page.ids()) == ["green"]
    page.press("#unknown p:nth-child(2) button")
    assert by_colour(page.ids()) == ["green", "yellow"]
    page.search("red")
    assert page.text("#unknown") == "" and len(page.ids()) == 13


def test_a_failing_server_is_told_of_and_asked_again(page: Page, app: Rehearsed) -> None:
    app.next(500, title="The server failed", detail="the log tells more", request_id="r-7")
    page.open("?q=red")
    lines = page.texts("#message h2, #message p")
    assert lines == ["The server failed", "the log tells more", "Request r-7", "Try again"]
    assert page.one("#message").get_attribute("role") == "alert"
    page.press("#message button")
    assert len(page.ids()) == 13 and page.text("#message") == ""


def test_a_busy_server_is_asked_again_by_itself(page: Page, app: Rehearsed) -> None:
    app.next(429, {"Retry-After": "1"}, title="The server is busy", detail="64 are being answered")
    page.open("?q=red")
    assert "Trying again in 1 second." in page.texts("#message p")
    page.until(lambda: len(page.ids()) == 13)
    assert page.text("#message") == ""
    for _ in range(4):
        app.next(429, {"Retry-After": "0"}, title="The server is busy", detail="still")
    page.open("?q=blue")
    page.until(lambda: not app.answers)
    page.until(lambda: page.texts("#message p") == ["still", "Try now"])
    page.press("#message button")
    assert "blue-00" in page.ids()


def test_a_key_is_asked_for_and_kept_for_the_tab(page: Page, spots: str) -> None:
    folder = Path(spots).parent
    key, _ = make_key(folder / "keys.json", "read")
    settings = Settings(spots, keys=folder / "keys.json", images=(folder / "pictures",))
    with serving(create_app(settings, MappingEncoder())) as address:
        guarded = Page(page.driver, address)
        guarded.open("?q=red")
        assert guarded.ids() == [] and guarded.one("#key-form").is_displayed()
        assert not guarded.one("#search").is_displayed()  # nothing else can be done
        assert guarded.focused().get_attribute("id") == "key"
        guarded.one("#key").send_keys("wrong\n")
        guarded.until(lambda: "does not take" in guarded.text("#key-help"))
        guarded.settle()
        guarded.one("#key").send_keys(key + "\n")
        guarded.until(lambda: len(guarded.ids()) == 13)
        assert not guarded.one("#key-form").is_displayed() and guarded.one("#search").is_displayed()
        guarded.until(lambda: guarded.all('#hits li[data-id="red-00"] img'))  # pictures too
        guarded.open("?q=blue")
        assert "blue-00" in guarded.ids()
        script = "return [localStorage.length, document.cookie, sessionStorage.length]"
        assert guarded.driver.execute_script(script) == [0, "", 1]
        guarded.driver.get("about:blank")


def test_hostile_text_is_shown_as_text(page: Page) -> None:
    page.open("?q=blue")
    page.open_hit("hostile")
    assert page.text("#detail-title").startswith("<img src=x")
    page.press("#detail dd .value")
    assert "<script>" in page.text("#chips")
    assert page.ids() == ["hostile"]
    page.open("?q=%3Cb%3Ered&ban=%3Cimg+src%3Dx+onerror%3D%22window.ran%3D1%22%3E")
    assert page.driver.execute_script("return window.ran ?? null") is None
    assert page.all("main img[src=x], main script, #chips img, #message b") == []


def test_back_and_forward_walk_through_the_searches(page: Page) -> None:
    page.open("?q=red")
    page.search("blue")
    page.press("#asked li[data-word=blue] .boost")
    page.driver.back()
    page.until(lambda: page.link() == "?q=blue" and page.chips() == [])
    page.driver.back()
    page.until(lambda: "red-00" in page.ids())
    assert page.one("#text").get_property("value") == "red"
    page.driver.forward()
    page.until(lambda: "blue-00" in page.ids())


def test_the_keyboard_does_all(page: Page) -> None:
    page.open("?q=black")
    first, second = page.ids()[:2]
    page.one(f'#hits li[data-id="{first}"] .card').send_keys(Keys.ARROW_RIGHT)
    assert page.focused().get_attribute("aria-controls") == "detail"
    page.focused().send_keys(Keys.ENTER)
    page.until(lambda: page.all("#detail .parts"))
    card = page.one(f'#hits li[data-id="{second}"] .card')
    assert card.get_attribute("aria-expanded") == "true"
    page.focused().send_keys(Keys.TAB)
    page.focused().send_keys(Keys.ESCAPE)
    assert not page.one("#detail").is_displayed()
    assert page.focused() == card and card.get_attribute("aria-expanded") == "false"
    card.send_keys(Keys.END)
    assert page.focused() == page.all(".card")[-1]
    page.focused().send_keys("/")
    assert page.focused().get_attribute("id") == "text"
    assert page.one("#text").get_property("value") == "black"


def test_everything_to_press_or_fill_has_a_name(page: Page) -> None:
    page.open("?q=red&boost=red:2&ban=blue")
    page.one("#options summary").click()
    page.bring(HALVES, "drop")
    page.open_hit(page.ids()[0])
    page.until(lambda: page.all("#detail .word"))
    controls = [each for each in page.all("button, input, select, img") if each.is_displayed()]
    decorative = [each for each in controls if each.get_attribute("alt") == ""]
    assert len(controls) > 40
    assert [
        each.get_attribute("outerHTML")
        for each in controls
        if not each.accessible_name and each not in decorative
    ] == []
    roles = {"#message": "alert", "#status": "status", "#search": "search", "#word": "combobox"}
    assert {name: page.one(name).aria_role for name in roles} == roles


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_phone_shows_all_without_scrolling_sideways(page: Page, dark: bool) -> None:
    page.look(390, 844, dark=dark, mobile=True)
    page.open("?q=red&ban=blue")
    page.one("#options summary").click()
    page.bring(HALVES, "drop")
    width = "return document.documentElement.scrollWidth"
    assert page.driver.execute_script(width) == 390
    page.open_hit(page.ids()[0])
    assert page.driver.execute_script(width) == 390
    lines = [page.one(f"{each} > summary").size["height"] for each in ("#asked", "#facets")]
    assert max(lines) < 40 and not page.one("#asked-words").is_displayed()  # folded to a line each
    ground = page.one("body").value_of_css_property("background-color")
    assert ground == ("rgba(21, 22, 24, 1)" if dark else "rgba(250, 250, 248, 1)")
