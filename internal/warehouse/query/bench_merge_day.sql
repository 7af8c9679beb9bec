-- Makes one part of a day.
OPTIMIZE TABLE labels PARTITION {{.day}} FINAL
