// Package evidence adds up labels: impressions and clicks of each creative by hour, placement and position, as whole numbers.
// It is pure: records in, cells out.
//
// # Cells
//
// A Partition folds one partition of labels.v1. What it counts is what the warehouse's labels_mature counts, and what the
// audit holds it against: the last version of each label, without robots; labels that were made while a circuit breaker was open
// apart. A label is a change of its cell by its kind alone, so that no impression is remembered:
//
//	positive              one impression, one click
//	final negative        one impression
//	corrected             one click: its impression was counted as a final negative
//	corrected, a robot's  one impression less
//	provisional negative  nothing
//
// Sums of inverse propensities are whole numbers of 1/InverseUnit, and each is at most MaxInverse: any order and any partitioning
// of the same labels gives the same bits, and a creative with a propensity near 0 does not outweigh all others.
//
// # What is not mature
//
// A click is labelled at once, its absence when its window closes, so that the newest impressions show clicks only. Clicks whose
// minute is not mature are therefore kept apart in their cell, by minute, until the watermark of the labels is so far beyond it
// that all negatives of the minute have come. So a cell may be read at any time, also in the middle of its hour.
//
// # Corrections and suspicion
//
// A correction does not say whether the negative before it was suspect, and the warehouse counts the correction's own word. The
// ids of suspect negatives are therefore kept for as long as a click may correct them (Config.horizonMS); they are few unless a
// breaker is open. A correction that comes for something older (the join remembers longer than is configured here, or the memory
// was bounded) is counted as unsure, and its click as suspect: nothing is learned from it unless a person clears it.
//
// # Memory and generations
//
// Hours in which nothing changes any more, and the oldest ones when memory is short, are closed: their cells leave the memory,
// their records stay. If a label comes for a closed hour after all, it makes a record of another generation (the offset of
// the first label in it), which readers add to the others. Nothing is lost or overwritten.
//
// # Readers
//
// Fold adds up the cells of all partitions, with reviews of suspect labels and erasures of persons, and stands at one offset of
// each partition of labels.v1.
package evidence
