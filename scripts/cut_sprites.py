"""Cut the sprites of the synthetic scenes from two npm packages; run once, the result is committed.

    npm pack @lobehub/fluent-emoji-3d@1.1.0 emojibase-data@17.0.0     # unpack each into a folder of its own
    python scripts/cut_sprites.py --art fluent-emoji-3d/package/assets --names emojibase-data/package/en/data.json

`GROUPS` lists emojibase labels, with a plain name behind "=" where the label is not one.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from epmvg.data.synthetic.sprite_library import SPRITE_FOLDER, TINT_HUES, tint

VISIBLE = 64  # alpha from which a pixel belongs to the object
SPRITE_SIDE = 96  # longer side in pixels: objects are 40 to 100 pixels long in an image of 256

HUES = {"orange": (15, 35), "yellow": (39, 64), "green": (75, 168), "blue": (190, 246), "purple": (252, 288)}
HUES |= {"pink": (292, 332)}
"""Least and greatest hue in degrees that a color word is right for; red wraps around."""

GROUPS: dict[str, str] = {
    "animals": """
        monkey, gorilla, dog, fox, raccoon, cat, lion, tiger, leopard, horse, unicorn, zebra, deer, cow, pig, ram,
        camel, llama, giraffe, elephant, rhinoceros=rhino, mouse, rabbit, hedgehog, bat, bear, koala, panda, sloth,
        skunk, kangaroo, turkey, rooster, baby chick=chick, penguin, dove, eagle, duck, swan, owl, flamingo,
        peacock, parrot, frog, crocodile, turtle, lizard, snake, sauropod=dinosaur, whale, fish, shark, octopus,
        spiral shell=seashell, jellyfish, crab, lobster, shrimp, squid, snail, butterfly, bug=caterpillar, ant,
        honeybee=bee, lady beetle=ladybug, spider, scorpion""",
    "plants": """
        rose, sunflower, tulip, potted plant, evergreen tree=pine tree, palm tree, cactus, four leaf clover=clover,
        mushroom""",
    "food": """
        grapes=bunch of grapes, watermelon=slice of watermelon, tangerine, lemon, banana, pineapple, red
        apple=apple, pear, peach, cherries=pair of cherries, strawberry, kiwi fruit=kiwi, tomato, avocado, eggplant,
        carrot, ear of corn=corn cob, hot pepper=chili pepper, bell pepper, cucumber, broccoli, onion,
        peanuts=peanut, bread=loaf of bread, croissant, baguette bread=baguette, pretzel, pancakes=stack of
        pancakes, waffle, cheese wedge=piece of cheese, poultry leg=chicken leg, cut of meat=steak, hamburger,
        french fries=box of fries, pizza=slice of pizza, hot dog, sandwich, taco, egg, cooking=frying pan,
        popcorn=bag of popcorn, sushi, soft ice cream=ice cream cone, doughnut=donut, cookie, birthday cake,
        shortcake=slice of cake, cupcake, pie, chocolate bar, candy, lollipop, honey pot""",
    "drinks": """
        glass of milk, hot beverage=cup of coffee, teapot, bottle with popping cork=champagne bottle, wine glass,
        beer mug, beverage box=juice box, ice=ice cube, spoon, kitchen knife, jar, amphora=vase""",
    "places": """
        globe showing Americas=globe, compass, volcano, wood=log, house, hospital, factory, castle, church,
        fountain, tent, ferris wheel""",
    "vehicles": """
        locomotive=steam train, bus, minibus=van, ambulance, fire engine, police car, taxi, automobile=car, delivery
        truck=truck, tractor, racing car, motorcycle, manual wheelchair=wheelchair, bicycle, kick scooter=scooter,
        skateboard, roller skate, fuel pump=gas pump, vertical traffic light=traffic light, stop sign, anchor, ring
        buoy=life ring, sailboat, canoe, speedboat, ship, airplane, parachute, helicopter, rocket, flying saucer""",
    "sky": """
        crescent moon, sun, ringed planet=planet, star, cloud, tornado, rainbow, umbrella, high voltage=lightning
        bolt, snowflake, snowman, fire=flame, droplet=water drop""",
    "play": """
        jack-o-lantern=pumpkin, Christmas tree, balloon, ribbon=bow, wrapped gift=gift, trophy, sports medal=medal,
        soccer ball, baseball, basketball, volleyball, american football=football, tennis=tennis racket, flying
        disc=frisbee, ping pong=ping pong paddle, boxing glove, fishing pole=fishing rod, diving mask, sled,
        bullseye=target, yo-yo, kite, water pistol, pool 8 ball=pool ball, video game=game controller, joystick,
        game die=dice, puzzle piece, teddy bear, piñata=pinata, chess pawn, framed picture=painting, artist
        palette=palette, thread=spool of thread, yarn=ball of yarn""",
    "clothes": """
        glasses=pair of glasses, sunglasses=pair of sunglasses, goggles=pair of goggles, t-shirt, jeans=pair of
        jeans, scarf, gloves=pair of gloves, coat, socks=pair of socks, dress, one-piece swimsuit=swimsuit,
        shorts=pair of shorts, folding hand fan=folding fan, purse, backpack, thong sandal=flip-flop, running
        shoe=sneaker, high-heeled shoe=high heel, ballet shoes=pair of ballet shoes, woman\u2019s boot=boot, crown,
        woman\u2019s hat=straw hat, billed cap=baseball cap, military helmet=helmet, lipstick, ring, gem stone=gem,
        luggage=suitcase, watch=wristwatch""",
    "music": """
        megaphone, bell, microphone, headphone=pair of headphones, saxophone, trumpet, accordion, guitar, musical
        keyboard=piano, violin, banjo, drum, maracas=pair of maracas""",
    "office": """
        mobile phone, telephone, battery, electric plug=plug, laptop, desktop computer=computer, keyboard, computer
        mouse, television, camera, magnifying glass tilted left=magnifying glass, closed book=book, scroll,
        newspaper, label=price tag, coin, money bag, credit card, envelope, package=cardboard box, closed mailbox
        with raised flag=mailbox, pencil, pen, paintbrush, crayon, file folder=folder, calendar, clipboard, pushpin,
        paperclip, straight ruler=ruler, scissors=pair of scissors, wastebasket=trash can, microscope, telescope""",
    "household": """
        candle, light bulb, flashlight, red paper lantern=paper lantern, hourglass done=hourglass, alarm clock,
        stopwatch, locked=padlock, key, hammer, axe, bomb, boomerang, shield, carpentry saw=saw, wrench,
        screwdriver, gear, toolbox, magnet, ladder, test tube, syringe, adhesive bandage=bandage, stethoscope, door,
        mirror, window, bed, couch and lamp=couch, chair, toilet, plunger, bathtub, broom, basket, roll of
        paper=toilet roll, bucket, toothbrush, sponge, fire extinguisher, shopping cart""",
}

TINTED_GROUPS = ("vehicles", "play", "clothes", "music", "office", "household")
"""Things that exist in any color."""

ONE_COLOR = """
    ambulance, fire engine, police car, taxi, stop sign, traffic light, basketball, baseball, football, soccer ball,
    pumpkin, Christmas tree, trophy, medal, target, coin, pair of sunglasses, television, light bulb, magnifying glass,
    painting, fire extinguisher, pair of glasses, laptop, computer, window, mirror, door, ladder, cardboard box,
    violin, money bag, ring, candle, saxophone, trumpet, palette, hourglass, ship, canoe, speedboat, sailboat"""
"""Things that are known by their color, or whose colored part is not what a color word would mean."""

ALIKE = """
    bear, teddy bear | fish, shark, whale | car, taxi, police car, racing car | truck, van, ambulance, fire engine,
    bus | pair of glasses, pair of sunglasses, pair of goggles, diving mask | purse, backpack, suitcase |
    monkey, gorilla | mobile phone, telephone | laptop, computer | sailboat, canoe, speedboat, ship |
    alarm clock, stopwatch, wristwatch | mouse, computer mouse | cupcake, birthday cake, slice of cake, pie |
    apple, tomato, peach, pair of cherries |
    pine tree, Christmas tree | horse, unicorn | pencil, pen, crayon | guitar, violin, banjo | motorcycle, scooter |
    coin, medal, sun | dove, swan, duck | crab, lobster, shrimp | cucumber, pear | bell, alarm clock |
    glass of milk, jar | key, padlock | paintbrush, toothbrush | cup of coffee, beer mug | lion, tiger, leopard"""
"""Kinds that one name could cover, or that look like each other: no two of them are in one scene."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--art", type=Path, required=True, help="the folder of .webp images")
    parser.add_argument("--names", type=Path, required=True, help="emojibase's data.json")
    given = parser.parse_args()
    codes = {row["label"]: row["hexcode"].lower() for row in json.loads(given.names.read_text(encoding="utf-8"))}
    rows = [
        cut(given.art, codes[label], name or label, group)
        for group, text in GROUPS.items()
        for label, _, name in (item.partition("=") for item in split(text))
    ]
    lines = ",\n".join(json.dumps(row) for row in sorted(rows, key=lambda row: str(row["name"])))
    (SPRITE_FOLDER / "sprites.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def cut(art: Path, code: str, name: str, group: str) -> dict[str, Any]:
    """Crop one sprite to its visible part, save it, and return its row of the table."""
    source = next(path for path in (art / f"{code}.webp", art / f"{code}-fe0f.webp") if path.exists())
    image = Image.open(source).convert("RGBA")
    image = image.crop(image.getchannel("A").point(lambda alpha: 255 * (alpha >= VISIBLE)).getbbox())
    image.thumbnail((SPRITE_SIDE, SPRITE_SIDE), Image.Resampling.LANCZOS)
    file = name.lower().replace(" ", "-") + ".webp"
    image.save(SPRITE_FOLDER / file, quality=85, method=6)
    image = Image.open(SPRITE_FOLDER / file).convert("RGBA")
    color = name_color(image)
    hue = dominant_hue(image) if group in TINTED_GROUPS and name not in split(ONE_COLOR) else None
    tints = (
        []
        if hue is None
        else [word for word in TINT_HUES if name_color(tint(image, hue, word)) == word and word != color]
    )
    return {
        "name": name,
        "file": file,
        "color": color,
        "hue": hue if tints else None,
        "tints": tints,
        "alike": next((names[0] for names in map(split, ALIKE.split("|")) if name in names), None),
    }


def split(text: str) -> list[str]:
    return [" ".join(item.split()) for item in text.split(",")]


def dominant_hue(image: Image.Image) -> int | None:
    """Return the hue in degrees around which most colored pixels of a sprite are, None if few are colored."""
    hue, saturation, value = hsv(image)
    colored = hue[(saturation >= 0.3) & (value >= 0.25)]
    if len(colored) < 0.4 * len(hue):
        return None
    counts = np.bincount(colored.astype(int) % 360, minlength=360)
    window = np.convolve(np.concatenate([counts[-15:], counts, counts[:15]]), np.ones(31), "valid")
    return int(window.argmax())


def name_color(image: Image.Image) -> str | None:
    """Return the one color word for a sprite, None where people might disagree."""
    hue, saturation, value = hsv(image)
    vivid, bright = saturation >= 0.35, value >= 0.55
    warm = (hue <= 40) | (hue >= 338)
    words = {word: vivid & (value >= 0.4) & (hue >= low) & (hue <= high) for word, (low, high) in HUES.items()}
    words["yellow"] &= value >= 0.8
    words["orange"] &= (value >= 0.8) & (saturation >= 0.6)
    words["red"] = (saturation >= 0.62) & bright & ((hue >= 338) | (hue <= 15))
    words["pink"] &= value >= 0.75
    words["pink"] |= (saturation >= 0.25) & (saturation <= 0.55) & (value >= 0.9) & ((hue >= 320) | (hue <= 8))
    words["brown"] = warm & (saturation >= 0.28) & (value <= 0.68) & (value >= 0.2)
    words["white"] = (saturation <= 0.18) & (value >= 0.8)
    words["grey"] = (saturation <= 0.25) & (value >= 0.3) & (value <= 0.8)
    fractions = sorted(((float(mask.mean()), word) for word, mask in words.items()), reverse=True)
    (first, word), (second, _) = fractions[:2]
    needed = 0.7 if word in ("white", "grey") else 0.5
    return word if first >= needed and second <= 0.2 else None


def hsv(image: Image.Image) -> tuple[NDArray[np.floating], NDArray[np.floating], NDArray[np.floating]]:
    """Return hue in degrees, and saturation and value in 0..1, of the opaque pixels."""
    opaque = np.asarray(image.getchannel("A")) >= 200
    pixels = np.asarray(image.convert("RGB").convert("HSV"))[opaque].astype(np.float32) / 255
    return pixels[:, 0] * 360, pixels[:, 1], pixels[:, 2]


if __name__ == "__main__":
    main()
