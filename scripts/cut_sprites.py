"""Cut the sprites of the drawn scenes from two npm packages; run once, the result is committed.

    npm pack @lobehub/fluent-emoji-3d@1.1.0 emojibase-data@17.0.0     # unpack each into a folder of its own
    python scripts/cut_sprites.py --art fluent-emoji-3d/package/assets --names emojibase-data/package/en/data.json

`GROUPS` lists emojibase labels, with a plain name behind "=" where the label is not one.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from PIL import Image

from epmvg.data.synthetic.sprite_library import SPRITE_FOLDER, SPRITE_SIDE, TINT_HUES, dominant_hue, name_colour, tint

VISIBLE = 64  # alpha from which a pixel belongs to the object

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
"""Made things come in any colour."""

ONE_COLOUR = """
    ambulance, fire engine, police car, taxi, stop sign, traffic light, basketball, baseball, football, soccer ball,
    pumpkin, Christmas tree, trophy, medal, target, coin, pair of sunglasses, television, light bulb, magnifying glass,
    painting, fire extinguisher, pair of glasses, laptop, computer, window, mirror, door, ladder, cardboard box,
    violin, money bag, ring, candle, saxophone, trumpet, palette, hourglass, ship, canoe, speedboat, sailboat"""
"""Made things that are known by their colour, or whose coloured part is not what a colour word would mean."""

ALIKE = """
    bear, teddy bear | fish, shark, whale | car, taxi, police car, racing car | truck, van, ambulance, fire engine,
    bus | pair of glasses, pair of sunglasses, pair of goggles, diving mask | purse, backpack, suitcase |
    monkey, gorilla | mobile phone, telephone | laptop, computer | sailboat, canoe, speedboat, ship |
    alarm clock, stopwatch, wristwatch | mouse, computer mouse | cupcake, birthday cake, slice of cake, pie |
    apple, tomato, peach, pair of cherries |
    pine tree, Christmas tree | horse, unicorn | pencil, pen, crayon | guitar, violin, banjo | motorcycle, scooter |
    coin, medal, sun | dove, swan, duck | crab, lobster, shrimp | cucumber, pear | bell, alarm clock |
    glass of milk, jar | key, padlock | paintbrush, toothbrush | cup of coffee, beer mug | lion, tiger, leopard"""
"""Kinds that one name could cover, or that look like each other: they share no scene."""

PLURALS = {
    "mouse": "mice",
    "computer mouse": "computer mice",
    "fish": "fish",
    "goose": "geese",
    "cactus": "cacti",
    "kitchen knife": "kitchen knives",
    "dice": "dice",
    "box of fries": "boxes of fries",
    "sushi": "pieces of sushi",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--art", type=Path, required=True, help="the folder of .webp pictures")
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
    """Cut one sprite to what is visible, save it, and return its row of the table."""
    source = next(path for path in (art / f"{code}.webp", art / f"{code}-fe0f.webp") if path.exists())
    picture = Image.open(source).convert("RGBA")
    picture = picture.crop(picture.getchannel("A").point(lambda alpha: 255 * (alpha >= VISIBLE)).getbbox())
    picture.thumbnail((SPRITE_SIDE, SPRITE_SIDE), Image.Resampling.LANCZOS)
    file = name.lower().replace(" ", "-") + ".webp"
    picture.save(SPRITE_FOLDER / file, quality=85, method=6)
    picture = Image.open(SPRITE_FOLDER / file).convert("RGBA")
    colour = name_colour(picture)
    hue = dominant_hue(picture) if group in TINTED_GROUPS and name not in split(ONE_COLOUR) else None
    tints = (
        []
        if hue is None
        else [word for word in TINT_HUES if name_colour(tint(picture, hue, word)) == word and word != colour]
    )
    return {
        "name": name,
        "plural": plural(name),
        "file": file,
        "group": group,
        "colour": colour,
        "hue": hue if tints else None,
        "tints": tints,
        "alike": next((names[0] for names in map(split, ALIKE.split("|")) if name in names), None),
    }


def split(text: str) -> list[str]:
    return [" ".join(item.split()) for item in text.split(",")]


def plural(name: str) -> str:
    """Return the plural of a plain name, of its head noun in "bag of popcorn"."""
    if name in PLURALS:
        return PLURALS[name]
    head, of, rest = name.partition(" of ")
    if head.endswith(("s", "x", "ch", "sh")):
        return head + "es" + of + rest
    if head.endswith("y") and head[-2] not in "aeiou":
        return head[:-1] + "ies" + of + rest
    return head + "s" + of + rest


if __name__ == "__main__":
    main()
