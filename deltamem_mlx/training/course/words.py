"""Whom and what the training conversations are about.

None of these names, and of the values only the months, are in what `deltamem-mlx eval recall` asks:
there both are new to the adapter.
"""


def listed(text: str) -> tuple[str, ...]:
    """What a comma-separated text lists."""
    return tuple(word.strip() for word in text.split(","))


NAMES = listed(
    "Adam, Agnes, Albert, Alice, Amara, Amy, Anders, Anita, Anna, Anton, Arthur, Astrid, Barbara, "
    "Ben, Bianca, Boris, Brenda, Bruno, Carl, Carmen, Carol, Cecilia, Charles, Claire, Clive, "
    "Connor, Cora, Craig, Curtis, Cynthia, Dana, Darren, David, Dean, Deborah, Dennis, Diana, "
    "Dmitri, Donna, Doris, Dylan, Edgar, Edith, Edward, Eileen, Ella, Emil, Emma, Eric, Erika, "
    "Esther, Ethan, Eva, Fiona, Florence, Frances, Frank, Fred, Gabriel, George, Gina, Gloria, "
    "Gordon, Grace, Greta, Gustav, Harold, Harriet, Harry, Hassan, Heather, Heidi, Helen, Henry, "
    "Howard, Hugo, Ian, Ida, Igor, Irene, Iris, Isaac, Ivan, Ivy, Jack, Jacob, Jane, Janet, Jason, "
    "Jean, Jenny, Jerome, Joan, Joel, Johan, Jonas, Jorge, Joseph, Joyce, Julia, Karen, Karim, "
    "Karl, Kate, Keith, Kevin, Kim, Klaus, Lars, Laura, Leo, Leonard, Lily, Linda, Lisa, Lorenzo, "
    "Louis, Lucy, Lydia, Magnus, Marcel, Margaret, Mario, Mark, Martha, Martin, Mary, Matthew, "
    "Maya, Megan, Michael, Mila, Mohammed, Molly, Monica, Nancy, Natasha, Nathan, Neil, Nicole, "
    "Nina, Noah, Nora, Norman, Omar, Otto, Pablo, Pamela, Paul, Paula, Pedro, Peter, Philip, "
    "Rachel, Ralph, Raymond, Rebecca, Rita, Robert, Roger, Ronald, Rosa, Ruth, Ryan, Sam, Sandra, "
    "Sara, Scott, Sean, Sergei, Sheila, Simon, Stella, Stephen, Steve, Susan, Sven, Sylvia, Tara, "
    "Teresa, Theo, Thomas, Tim, Tina, Tony, Ursula, Vera, Vincent, Walter, Wanda, Wayne, Wendy, "
    "William, Xavier, Yusuf, Yvonne, Zoe"
)

CITIES = listed(
    "Paris, London, Berlin, Rome, Madrid, Tokyo, Chicago, Boston, Seattle, Houston, Moscow, "
    "Istanbul, Cairo, Delhi, Mumbai, Shanghai, Sydney, Manchester, Liverpool, Venice, Milan, "
    "Naples, Florence, Geneva, Zurich, Hamburg, Munich, Cologne, Amsterdam, Brussels, Stockholm, "
    "Helsinki, Copenhagen, Budapest, Lyon, Marseille, Barcelona, Valencia, Seville, Lima, Havana, "
    "Bogota, Dallas, Atlanta, Phoenix, Detroit, Miami, Portland, Austin, Orlando, Vancouver, "
    "Ottawa, Singapore, Jakarta, Manila, Beijing, Seoul, Osaka, Baghdad, Tehran, Jerusalem, "
    "Damascus, Johannesburg, Casablanca, Lagos, Birmingham, Edinburgh, Bristol, Leeds, Oxford, "
    "Cambridge, York"
)

COUNTRIES = listed(
    "France, Germany, Italy, Spain, Portugal, Norway, Sweden, Finland, Denmark, Poland, Greece, "
    "Turkey, Egypt, Kenya, Nigeria, Ghana, Morocco, Brazil, Argentina, Chile, Peru, Mexico, "
    "Canada, Japan, China, India, Vietnam, Thailand, Indonesia, Australia, Ireland, Scotland, "
    "Iceland, Hungary, Romania, Ukraine, Russia, Iran, Pakistan, Nepal"
)

LANGUAGES = listed(
    "French, German, Italian, Spanish, Portuguese, Norwegian, Swedish, Finnish, Danish, Polish, "
    "Greek, Turkish, Arabic, Swahili, Japanese, Chinese, Hindi, Vietnamese, Russian, Hebrew, "
    "Latin, Dutch, Czech, Hungarian, Korean, Welsh"
)

JOBS = listed(
    "teacher, doctor, engineer, farmer, painter, actor, singer, writer, poet, soldier, sailor, "
    "driver, waiter, cook, chef, tailor, gardener, fisherman, hunter, judge, banker, clerk, "
    "manager, secretary, reporter, photographer, musician, dancer, sculptor, architect, mechanic, "
    "electrician, builder, miner, barber, hairdresser, shoemaker, jeweler, potter, biologist, "
    "physicist, historian, economist, geologist, psychologist, therapist, veterinarian, "
    "pharmacist, paramedic, detective, guard, coach, referee, designer, programmer, editor, "
    "publisher, printer, tutor, professor, cashier, courier, bartender, magician, clown, diver, "
    "astronaut, priest, diplomat"
)

PETS = listed(
    "Max, Bella, Charlie, Rex, Daisy, Buddy, Ginger, Tiger, Smokey, Lucky, Ruby, Bruno, Coco, "
    "Rosie, Duke, Oreo, Cookie, Honey, Pumpkin, Sunny, Storm, Thunder, Snowball, Whiskers, "
    "Patches, Buttons, Bear, Fox, Comet, Apollo, Zeus, Hercules, Caesar, Merlin, Gandalf, "
    "Sherlock, Watson, Popcorn, Muffin, Peanut, Sugar, Hazel, Maple, Willow, Jasper, Opal, Pearl, "
    "Amber, Copper"
)

INSTRUMENTS = listed(
    "viola, drums, mandolin, bagpipes, organ, tuba, lute, xylophone, keyboard, recorder, double "
    "bass, sitar, zither, cornet, marimba, harpsichord, piccolo, tambourine, fiddle, bugle, horn, "
    "triangle"
)

FOODS = listed(
    "spaghetti, soup, steak, salmon, pancakes, omelettes, burgers, noodles, dumplings, tacos, "
    "burritos, meatballs, roast chicken, fried rice, salad, lentils, beans, potatoes, cheese, "
    "bread, toast, bacon, sausages, lobster, shrimp, oysters, stew, pie, porridge, ravioli, "
    "pudding, ice cream, chocolate, cake, apples, mangoes, peaches, strawberries, grapes, bananas, "
    "pineapple, watermelon, popcorn, pretzels, yogurt, mushrooms, spinach, artichokes"
)

DRINKS = listed(
    "coffee, green tea, black tea, orange juice, apple juice, lemonade, cider, beer, red wine, "
    "white wine, whiskey, rum, champagne, hot chocolate, mint tea, tomato juice, sparkling water, "
    "ginger ale, espresso, cappuccino, grape juice, buttermilk"
)

ALLERGENS = listed(
    "peanuts, cats, dogs, eggs, fish, strawberries, grass, bees, feathers, nickel, almonds, "
    "walnuts, tomatoes, bananas, kiwi, chocolate, honey, perfume, horses, mold, sunlight, ragweed, "
    "oats, rye, ibuprofen, iodine"
)

COLORS = listed(
    "blue, orange, gray, violet, teal, cyan, magenta, indigo, lavender, ivory, amber, scarlet, "
    "emerald, lime, tan, cream, copper, coral, khaki, rose, charcoal"
)

HOBBIES = listed(
    "tennis, football, basketball, baseball, hockey, golf, boxing, wrestling, swimming, diving, "
    "running, hiking, climbing, camping, fishing, hunting, dancing, singing, painting, drawing, "
    "photography, poetry, cooking, baking, sewing, weaving, carpentry, yoga, meditation, poker, "
    "bowling, darts, billiards, badminton, rugby, cricket, volleyball, skating, kayaking, "
    "canoeing, genealogy, calligraphy, juggling, magic, puzzles, stamp collecting, model trains, "
    "robotics"
)

MONTHS = listed(
    "January, February, March, April, May, June, July, August, September, October, November, "
    "December"
)

DAYS = listed("Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday")

ANIMALS = listed(
    "cat, dog, horse, cow, pig, sheep, goat, rabbit, mouse, rat, hamster, lion, tiger, bear, wolf, "
    "fox, deer, elephant, giraffe, zebra, monkey, gorilla, camel, kangaroo, koala, panda, whale, "
    "dolphin, shark, octopus, crab, turtle, frog, snake, lizard, crocodile, eagle, owl, parrot, "
    "penguin, swan, duck, chicken, turkey, peacock, spider, butterfly, bee, ant, snail, hedgehog, "
    "squirrel, beaver, otter, seal, bat, raven, falcon, pigeon, rhino, hippo, leopard, cheetah"
)

THINGS = listed(
    "lamp, mirror, clock, candle, vase, basket, blanket, pillow, carpet, curtain, ladder, hammer, "
    "shovel, bucket, rope, chain, lock, key, wallet, purse, backpack, umbrella, scarf, jacket, "
    "coat, shirt, belt, boots, gloves, hat, helmet, ring, necklace, bracelet, watch, camera, "
    "radio, telephone, laptop, printer, keyboard, microphone, telescope, microscope, compass, map, "
    "globe, notebook, diary, pencil, stamp, envelope, newspaper, magazine, novel, dictionary, "
    "puzzle, doll, kite, balloon, drum, whistle, trophy, medal, coin, statue, painting, "
    "photograph, poster, plate, bowl, spoon, knife, fork, bottle, jar, kettle, toaster, oven, "
    "stove, fridge, sofa, table, bench, desk, shelf, cabinet, wardrobe, mattress, tent, lantern, "
    "torch, battery, magnet, engine, wheel, bicycle, tractor, truck, boat, canoe, anchor, sail, "
    "paddle, sword, shield, arrow, crown, throne, flag, drone, robot, tripod, calculator, "
    "scissors, needle, thread, button, ribbon, soap, towel, brush, comb, perfume, razor, sponge, "
    "broom, vacuum, bandage, thermometer, cactus, fern, orchid, rose, tulip, lily, bonsai, "
    "aquarium, bird cage, teapot, mug, chessboard, dartboard"
)

WORDS = listed(
    "acorn, airport, album, angel, ankle, apple, apricot, arena, avalanche, avocado, badge, "
    "bakery, bamboo, banquet, barley, barrel, basement, beacon, beetle, blizzard, blossom, "
    "boulder, bridge, bubble, cabin, canal, canyon, carnival, castle, cathedral, cavern, cedar, "
    "cellar, cement, chapel, cherry, chimney, circus, cliff, cloud, coconut, comet, corridor, "
    "cottage, cradle, crater, creek, crystal, dagger, dawn, desert, dessert, diamond, dolphin, "
    "dragon, drawer, eclipse, elbow, elevator, empire, engine, evening, factory, feather, fern, "
    "festival, fireplace, flame, flour, forest, fortress, fossil, fountain, galaxy, garage, "
    "garden, ghost, glacier, goblet, granite, gravel, hallway, harbor, harvest, hazelnut, "
    "helicopter, highway, hill, hurricane, iceberg, island, ivory, jacket, jewel, jungle, kitchen, "
    "kitten, knight, lagoon, lake, lantern, leather, legend, library, lighthouse, lightning, "
    "lobster, locket, marble, market, meadow, melody, meteor, midnight, mirror, mosaic, mountain, "
    "mushroom, napkin, ocean, onion, orchard, oyster, palace, panther, parachute, parade, pebble, "
    "pillar, pirate, planet, plaza, pocket, prairie, prison, pumpkin, puppet, pyramid, quarry, "
    "rainbow, raven, ribbon, river, saddle, satellite, school, shark, sheriff, shore, silk, "
    "skeleton, smoke, snowflake, soldier, sparrow, spider, stadium, staircase, station, sunset, "
    "swamp, temple, theater, thunder, tornado, tower, treasure, tunnel, twilight, valley, velvet, "
    "village, vineyard, volcano, wagon, walnut, waterfall, whale, willow, window, winter, wizard, "
    "zebra, academy, balcony, ballet, barn, bishop, bonfire, bullet, cactus, cannon, caravan, "
    "choir, citadel, column, concert, copper, coral, cotton, courtyard, cricket, curtain, "
    "dancer, debate, detective, diary, elephant, emperor, falcon, fiction, finger, gallery, "
    "gazelle, geometry, giant, ginger, glory, hammer, horizon, hotel, insect, journal, justice, "
    "kingdom, ladder, laundry, lemon, liberty, machine, magnet, maple, mercury, miracle, monument, "
    "mosquito, museum, needle, network, nickel, novel, nutmeg, orchestra, packet, painter, "
    "paradise, parrot, pencil, phantom, pigeon, platform, poem, prince, professor, quartz, "
    "railway, saturn, scholar, signal, sparkle, sphere, storm, sugar, summit, symphony, tiger, "
    "timber, turbine, uniform, vanilla, vessel, villain, vitamin, voyage, wisdom, wolf, wrist"
)

PLACES = listed(
    "kitchen, garage, basement, attic, bathroom, bedroom, garden, hallway, office, library, "
    "cellar, balcony, closet, drawer, car, train station, hotel, museum, gym, church, school, "
    "bakery, pharmacy, supermarket, airport, park, theater, cinema, restaurant, bank, hospital, "
    "post office, barn, greenhouse, boat, workshop, laundry room, dining room, waiting room, "
    "courtyard"
)

SUBJECTS = listed(
    "mathematics, physics, chemistry, biology, history, geography, philosophy, economics, law, "
    "medicine, music, art, literature, psychology, sociology, architecture, engineering, "
    "statistics, geology, linguistics, theology, anthropology, botany, zoology, nursing, "
    "accounting, computing"
)

TASKS = listed(
    "water the plants, feed the fish, pay the rent, call the plumber, book a table, renew the "
    "passport, fix the fence, clean the windows, buy new shoes, return the library books, paint "
    "the door, order a cake, send the package, walk the neighbor's dog, pick up the laundry, "
    "cancel the subscription, charge the camera, mow the lawn, write the report, print the "
    "tickets, bake bread, change the light bulb, visit the museum, sell the bicycle, wash the car, "
    "repair the roof"
)

NUMBERS = tuple(str(n) for n in range(12, 100))
TIMES = tuple(f"{hour} o'clock" for hour in range(1, 13))
