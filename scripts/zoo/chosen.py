"""The cases that CI fits: 60 sets, those of reports and diverse others.

Each line stands for a kind of trouble that the first run of the zoo has shown, or for none. What
takes minutes is left to the full form: AER/STAR ethnicity, openintro/mn_police_use_of_force race.
"""

from __future__ import annotations

CHOSEN = {
    # Reports: reads, stops that were too early, no end.
    "openintro/email": ("num_char", "dollar", "from"),
    "lme4/VerbAgg": ("resp",),
    "DAAG/sorption": ("Cultivar",),
    "COUNT/nuts": ("dbh", "ntrees"),
    "fpp3/insurance": ("TVadverts",),
    "AER/STAR": ("schoolid1",),
    "carData/GSSvocab": ("ageGroup", "age"),
    "Ecdat/PSID": ("married", "earnings"),
    # Separated classes with many columns.
    "causaldata/gapminder": ("continent",),
    "modeldata/hepatic_injury_qsar": ("bio_assay_049",),
    "Ecdat/USGDPpresidents": ("unempSource", "Keynes"),
    "carData/Blackmore": ("group",),
    "vcd/Baseball": ("league87",),
    "HLMdiag/radon": ("basement",),
    "wooldridge/apple": ("inseason",),
    # Separated classes with few columns; a rare class.
    "Stat2Data/SuicideChina": ("Urban", "Died"),
    "ggplot2movies/movies": ("mpaa",),
    "Ecdat/Yogurt": ("feat.yoplait", "choice"),
    "multgee/housing": ("sec",),
    "MASS/shuttle": ("magn", "wind"),
    "MASS/Rabbit": ("Treatment", "Animal"),
    "datasets/Seatbelts": ("law",),
    "Stat2Data/ButterfliesBc": ("Sex",),
    "vcdExtra/Vietnam": ("sex",),
    "nlme/Oxide": ("Source",),
    "openintro/lizard_run": ("common_name",),
    "survival/cgd": ("hos.cat", "sex"),
    "carData/Angell": ("region",),
    "fpp3/boston_marathon": ("Event",),
    "heplots/Pottery2": ("Region",),
    "causaldata/abortion": ("sex", "income"),
    # Levels without events.
    "Stat2Data/FruitFlies": ("Partners", "Treatment"),
    "wooldridge/admnrev": ("daysfrst", "admnrev"),
    # Almost separated: an optimum exists, far away.
    "survival/mgus": ("death", "pcdx"),
    "gt/rx_adsl": ("RANDFL", "SEX"),
    # Nearly aliased columns.
    "mlmRev/Chem97": ("gender",),
    "wooldridge/athlet1": ("apps",),
    "wooldridge/driving": ("wkndfat", "perc14_24"),
    "wooldridge/intdef": ("year",),
    "wooldridge/jtrain3": ("agesq", "unem78"),
    "wooldridge/openness": ("good", "linf"),
    "asaur/hepatoCellular": ("Number", "Tumordifferentiation"),
    "DAAG/bomsoi": ("Year",),
    # More rows than the sample of a start: the reads.
    "DAAG/monica": ("diabetes", "hosp"),
    "DAAG/spam7": ("yesno", "make"),
    "carData/CES11": ("education", "weight"),
    "wooldridge/recid": ("married", "ldurat"),
    "wooldridge/wagepan": ("occ2", "lwage"),
    "Ecdat/RetSchool": ("wage76", "col4"),
    "Ecdat/Doctor": ("health", "children"),
    "boot/brambles": ("x",),
    "plm/EmplUK": ("output", "year"),
    "AER/USStocksSW": ("returns",),
    "openintro/dream": ("stance",),
    "openintro/pm25_2011_durham": ("aqs_parameter_desc", "daily_mean_pm2_5_concentration"),
    "Stat2Data/Cuckoo": ("Bird",),
    # No trouble: small, sparse, one column.
    "datasets/nottem": ("value",),
    "Ecdat/Car": ("price2",),
    "bakeoff/results_raw": ("series",),
    "fpp2/wmurders": ("value",),
}
