"""For tests with real models: sums that do not depend on the size of a batch."""

import os

# On a CPU torch makes products in float8 of MKL's in float32, which are summed in another order for
# another number of rows. Rounding to float8 turns a last bit into up to 15 levels of an image on
# processors with AVX-512. MKL reads this when it is first used.
os.environ["MKL_CBWR"] = "AUTO,STRICT"
