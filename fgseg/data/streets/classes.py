"""Ids of the classes that the street scenes draw, those of Cityscapes; configs/labels/streets.yaml lists them."""

OTHER = 0
"""Bins, posters, bollards, lamps and the backs of traffic signs."""
ROAD, SIDEWALK, BUILDING, FENCE, POLE, TRAFFIC_LIGHT, TRAFFIC_SIGN = 7, 8, 11, 13, 17, 19, 20
VEGETATION, TERRAIN, SKY, PERSON, CAR, BICYCLE = 21, 22, 23, 24, 26, 33
