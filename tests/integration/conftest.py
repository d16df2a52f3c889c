"""For tests with real models: sums that do not depend on the size of a batch."""

import os

# MKL's float32 products, of which torch makes those in float8 on a CPU, are summed in another order
# for another number of rows. Rounding to float8 turns a last bit into up to 15 levels of an image on
# processors with AVX-512. MKL reads this when it is first used.
os.environ["MKL_CBWR"] = "AUTO,STRICT"
