"""Does a model keep the contract?"""
