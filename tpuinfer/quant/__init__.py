"""Values that are smaller than they look: what stands in a weight's place, and how it multiplies.

Modules and public names:
  qarray    QArray: codes, scales and zeros of a weight; dequantise; pack, unpack: codes in pairs
  schemes   Scheme, Schemes: which weight is kept how, as data
  fit       quantise: a weight -> the QArray of a scheme; abstract: its shapes alone
  dots      contract, contract_each: activations times a QArray
  rows      Rounded, round_rows: keys and values of a ring, one scale a row

A weight [out..., in...] is contracted along its last one or two dimensions. Its scales are those of
a row, one for all of it or one for each group of neighbouring inputs; they are applied after the
dot wherever that costs nothing. Activations are rounded row by row, never over a batch.

Ignorant of models, of meshes (a scale lies where its weight's rows lie: models.blueprint), of files
and of who chooses a scheme.
"""
