"""Would a run fit before there is a machine, and what would bound its speed?"""
