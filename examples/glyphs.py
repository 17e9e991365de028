"""A folder of one's own images: letters in the fonts that come with matplotlib, one of them new.

python examples/glyphs.py
"""

import re
from pathlib import Path
from typing import Any

import matplotlib
from PIL import Image, ImageDraw, ImageFont

import handful

WITH_LETTERS = r"DejaVu(Sans|Serif)(?!Display)|STIXGeneral|cm(b|mi|r|ss|ti|tt)10"
FONTS = sorted(Path(matplotlib.get_data_path(), "fonts", "ttf").glob("*.ttf"))
LETTERS = "ABDEGHKMRS"


def glyph(letter: str, font: Path, size: int = 40) -> Image.Image:
    """Dark on light, as large as a scan might be."""
    image = Image.new("L", (64, 64), 240)
    draw = ImageDraw.Draw(image)
    draw.text((32, 32), letter, 30, ImageFont.truetype(font, size), anchor="mm")
    return image


def main(folder: Path = Path("runs"), **settings: Any) -> list[str]:
    """Write the folder, train on it, and read a word in a font that was left out."""
    usual = [font for font in FONTS if re.match(WITH_LETTERS, font.name)]
    new, *known = sorted(usual, key=lambda font: font.name != "DejaVuSerif-Italic.ttf")
    for letter in LETTERS:
        place = folder / "letters" / letter
        place.mkdir(parents=True, exist_ok=True)
        for font in known:
            glyph(letter, font).save(place / f"{font.stem}.png")
    out = folder / "letters-run"
    run = handful.train(str(folder / "letters"), out=out, overwrite=True, **settings)
    model = handful.load(run.path)
    answers = model.predict([glyph(letter, new) for letter in "HAMBERG"])
    print(f"trained on {len(known)} fonts, read in {new.stem}: {' '.join(answers)}")
    return answers


if __name__ == "__main__":
    main()
