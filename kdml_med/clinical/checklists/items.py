"""What two reporting guidelines ask of a study, in this project's own words; the numbers are those of the guidelines.

Source:
    TRIPOD+AI: Collins et al. 2024, BMJ 385:e078378; prediction models, developed or evaluated.
    STARD 2015: Bossuyt et al. 2015, BMJ 351:h5527; diagnostic accuracy.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Item:
    """One item of a guideline.

    Attributes:
        number: in the guideline.
        asks: what a reader has to learn, in own words.
        author: what no data of a run say, and the author has to write.
        facts: names of what a run can say about it, see ``kdml_med.clinical.checklists.facts``.
    """

    number: str
    asks: str
    author: str
    facts: tuple[str, ...] = ()


TRIPOD_AI: tuple[Item, ...] = (
    Item("1", "Title: a prediction model is developed or evaluated, for whom and for which outcome",
         "The title.", ("aim",)),
    Item("2", "Abstract, structured as the guideline's list for abstracts wants it",
         "The abstract."),
    Item("3a", "Medical context, diagnostic or prognostic, reason for the model, and models that exist",
         "All of it."),
    Item("3b", "Who the model is for, where in care it is used, and by whom",
         "All of it."),
    Item("3c", "Known inequalities in health between groups of people",
         "All of it."),
    Item("4", "Objectives: development, evaluation, or both",
         "The objectives, as they were set beforehand.", ("aim",)),
    Item("5a", "Where the data come from, of development and of evaluation, and how representative they are",
         "Kind of study, why these data, whom they represent.", ("data",)),
    Item("5b", "When participants were included, and when follow-up ended",
         "The dates."),
    Item("6a", "Setting: kind of care, number and places of centres",
         "Setting and places.", ("centres",)),
    Item("6b", "Who could take part",
         "Criteria of inclusion and exclusion of patients."),
    Item("6c", "Treatments that participants received",
         "Treatments before the sample or the examination, if any."),
    Item("7", "Preparation and quality checks of the data, alike for all groups of people or not",
         "What was done to the data before, and whether it was the same for all groups.", ("preparation", "missing")),
    Item("8a", "The outcome: how, when and why so, alike for all groups or not",
         "How the label was determined (assay, panel, reader), and when.", ("outcome",)),
    Item("8b", "If people judge the outcome: who they are and what qualifies them",
         "Number and qualification of those who labelled or annotated."),
    Item("8c", "Blinding of those who judge the outcome",
         "Whether they knew the answers of a model."),
    Item("9a", "How the initial predictors were chosen (development)",
         "Why images of this kind and of this resolution.", ("predictors",)),
    Item("9b", "All predictors: what, how and when measured",
         "Scanner or endoscope, staining, magnification, time of acquisition.", ("predictors", "preparation")),
    Item("9c", "If people judge predictors: who they are and what qualifies them",
         "Who chose slides, regions or frames, if anybody did."),
    Item("10", "How the size of the study came about, of development and of evaluation",
         "The reason for the size, or its calculation.", ("counts",)),
    Item("11", "How missing data were handled, and what was left out",
         "Patients who lack a slide, a video or a label, and how many.", ("missing",)),
    Item("12a", "How the data were divided for development and evaluation",
         "Why so, with regard to size.", ("partition",)),
    Item("12b", "How predictors entered the analysis (development)",
         "Nothing more, unless images were changed elsewhere.", ("preparation", "input")),
    Item("12c", "Kind of model, reason for it, all steps of building it, tuning and internal validation",
         "Why this model; everything that was tried and not kept.", ("model", "selection")),
    Item("12d", "Whether and how differences between centres or countries were examined",
         "Which differences were expected.", ("centres_differ",)),
    Item("12e", "Measures and plots of performance, with the reason for them, and how models were compared",
         "Which measure was the main one, decided when.", ("measures", "intervals")),
    Item("12f", "Changes of the model that the evaluation led to, such as recalibration",
         "Whether anything was changed after the evaluation."),
    Item("12g", "How predictions were calculated in the evaluation (code, file, interface)",
         "Where the code and the weights can be had.", ("prediction",)),
    Item("13", "What was done about unequal classes, why, and what it did to the calibration",
         "The reason.", ("imbalance",)),
    Item("14", "What was done for fairness, and why",
         "All of it.", ("fairness",)),
    Item("15", "What the model gives out, and how thresholds were found",
         "Why these thresholds suit the purpose.", ("output", "thresholds")),
    Item("16", "How development and evaluation differ in setting, criteria, outcome and predictors",
         "Differences of patients, criteria and outcome.", ("difference",)),
    Item("17", "Ethics: who approved the study, and consent",
         "All of it."),
    Item("18a", "Funding and the role of funders", "All of it."),
    Item("18b", "Conflicts of interest", "All of it."),
    Item("18c", "Where the protocol is, or that there is none", "All of it."),
    Item("18d", "Registration, or that there is none", "All of it."),
    Item("18e", "Whether and where the data can be had", "All of it; the hashes tell whether data are the same.",
         ("data",)),
    Item("18f", "Whether and where the code can be had", "Where it can be had.", ("code",)),
    Item("19", "How patients and the public took part, or that they did not", "All of it."),
    Item("20a", "Flow of participants, with and without the outcome; a diagram",
         "Patients before they came into the dataset.", ("flow",)),
    Item("20b", "Characteristics of participants, overall and by source",
         "Age, sex, disease and what else describes them.", ("flow",)),
    Item("20c", "Evaluation: how predictors are distributed, compared with development",
         "The comparison.", ("difference",)),
    Item("21", "Participants and outcomes in each analysis: development, tuning, evaluation",
         "Nothing more, unless analyses were made elsewhere.", ("counts",)),
    Item("22", "The model in full, so that others can predict and evaluate; restrictions of its use",
         "Where the weights can be had, and under which licence.", ("model", "weights")),
    Item("23a", "Performance with intervals, also of key groups; plots",
         "The figures in the text, those of the main network first.", ("performance", "variability")),
    Item("23b", "Results on differences between centres or countries, if examined",
         "What they mean.", ("centres_differ",)),
    Item("24", "Results of changes of the model, if any were made",
         "The results, if so."),
    Item("25", "What the results mean, fairness included, beside earlier studies", "All of it."),
    Item("26", "Limitations: people, size, overfitting, missing data", "All of it.", ("cautions",)),
    Item("27a", "What to do with poor or missing input in use",
         "What a user has to do then.", ("quality",)),
    Item("27b", "Whether users have to act on input or output, and what they have to know", "All of it."),
    Item("27c", "Next steps of research, use elsewhere", "All of it."),
)  # fmt: skip

STARD: tuple[Item, ...] = (
    Item("1", "Title or abstract: a study of accuracy, naming at least one measure", "The title.", ("measures",)),
    Item("2", "Abstract, structured as the guideline's list for abstracts wants it", "The abstract."),
    Item("3", "Background, with intended use and role of the index test", "All of it."),
    Item("4", "Objectives and hypotheses", "All of it."),
    Item("5", "Whether data collection was planned before (prospective) or after the tests (retrospective)",
         "All of it."),
    Item("6", "Who could take part", "Criteria of inclusion and exclusion of patients."),
    Item("7", "By what those who could take part were found (symptoms, results, a register)", "All of it."),
    Item("8", "Where and when they were found", "Places and dates.", ("centres",)),
    Item("9", "Whether they are consecutive, a random sample, or chosen for convenience", "All of it."),
    Item("10a", "The index test, so that it can be repeated",
         "Devices and acquisition of the images.", ("model", "preparation", "prediction")),
    Item("10b", "The reference standard, so that it can be repeated",
         "How the label was determined, or who annotated and how.", ("outcome",)),
    Item("11", "Why this reference standard, if there are others", "All of it."),
    Item("12a", "Cut-offs of the index test and the reason for them; set beforehand or explored",
         "Why these suit the purpose.", ("thresholds",)),
    Item("12b", "Cut-offs of the reference standard, likewise", "All of it."),
    Item("13a", "Whether those who performed the index test knew the reference standard",
         "Whether anybody who chose images knew the labels.", ("blind",)),
    Item("13b", "Whether those who judged the reference standard knew the index test", "All of it."),
    Item("14", "How accuracy was estimated or compared", "Nothing more, unless analyses were made elsewhere.",
         ("measures", "intervals")),
    Item("15", "How indeterminate results were handled", "Those of the reference standard.", ("indeterminate",)),
    Item("16", "How missing results were handled", "Patients without either test.", ("missing",)),
    Item("17", "Analyses of what accuracy varies with; set beforehand or explored",
         "Which of them were set beforehand.", ("variability",)),
    Item("18", "Intended size and how it was determined", "All of it.", ("counts",)),
    Item("19", "Flow of participants; a diagram", "Patients before they came into the dataset.", ("flow",)),
    Item("20", "Characteristics of participants", "Age, sex, disease and what else describes them.",
         ("flow",)),
    Item("21a", "Severity of disease in those who have it", "All of it.", ("severity",)),
    Item("21b", "Other diagnoses in those who do not have it", "All of it."),
    Item("22", "Time and treatment between index test and reference standard", "All of it."),
    Item("23", "Results of the index test by those of the reference standard, in a table",
         "Nothing more.", ("crosstab",)),
    Item("24", "Accuracy with 95 % intervals", "The figures in the text, those of the main network first.",
         ("performance",)),
    Item("25", "Harm by either test", "All of it."),
    Item("26", "Limitations: bias, uncertainty, use elsewhere", "All of it.", ("cautions",)),
    Item("27", "What follows for practice", "All of it."),
    Item("28", "Registration", "All of it."),
    Item("29", "Where the protocol is", "All of it."),
    Item("30", "Funding and the role of funders", "All of it."),
)  # fmt: skip
